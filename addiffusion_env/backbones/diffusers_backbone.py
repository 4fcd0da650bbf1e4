"""What backbones made of diffusers models share: guidance, parametrisation, decoding, the text cache."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from addiffusion_env.backbones.attention import AttentionStore, captured_cross_attention
from addiffusion_env.backbones.base import Backbone, Conditioning, Prediction, check_prompts
from addiffusion_env.backbones.compiled import bucket_of, filled
from addiffusion_env.backbones.fingerprint import fingerprint
from addiffusion_env.backbones.paths import rows
from addiffusion_env.backbones.taps import FeatureTap
from addiffusion_env.errors import CapabilityError, ConfigError

PARAMETRISATIONS = ("epsilon", "v_prediction", "flow", "sample")
NEGATIVE = "negative_"
"""Prefix of the tensors of the negative prompt: ``negative_text`` stands in for ``text`` on the unguided rows."""

TEXT_CACHE = 256 * 2**20
"""Most bytes of encoded prompts kept: eight hundred of SDXL's in half precision, a hundred of Flux's."""

TEXTS_KEPT = 1024
"""Most encoded prompts kept, so that a long run on small embeddings does not grow for hours either."""

DECODE_PIXELS = 4 * 1024 * 1024
"""Pixels decoded at once: more saves no time a picture on a GPU, and 32 pictures of SDXL would not fit."""


class DiffusersBackbone(Backbone):
    """The loop body of a diffusers pipeline, row by row.

    Subclasses say how to encode text (:meth:`encode_uncached`) and how to call the network (:meth:`denoise`).

    Attributes:
        parts: the loaded components.
        denoiser: the UNet or transformer.
        compiled: its compiled form, or ``None``.
        vae: the full autoencoder.
        previewer: decodes cheap pictures, with the calling convention of ``AutoencoderTiny``.
        parametrisation: what the network predicts: ``epsilon``, ``v_prediction``, ``sample`` or ``flow``.
        dtype: precision of the denoiser; latents and solver steps are float32 in any case.
        offload_hooks: accelerate's hooks of the components that wait in host memory (``offload=model``).
        buckets: batch sizes that a network call is filled up to (:mod:`backbones.compiled`); empty for no filling.
        tap: keeps the denoiser's own features; ``None`` where it has no middle block.
        upcasts: decode in float32 where the autoencoder is in float16 and its config says ``force_upcast``.
    """

    # Caches, and what makes the same pictures on another way: where weights wait, the tap that reads along.
    not_identity = ("_texts", "_negative", "_encoded_by", "_capturing", "offload_hooks", "tap")
    upcasts: ClassVar[bool] = False
    parts: Any
    denoiser: Any
    compiled: Any = None
    tap: FeatureTap | None = None
    vae: Any
    previewer: Any
    parametrisation: str
    dtype: torch.dtype

    def __init__(self) -> None:
        self.offload_hooks: Sequence[Any] = ()
        self.buckets: Sequence[int] = ()
        self._texts: OrderedDict[str, Conditioning] = OrderedDict()
        self._negative: dict[str, Tensor] = {}
        self._encoded_by: tuple[Any, ...] = ()
        self._capturing = False

    @property
    def network(self) -> Any:
        """What to call for an evaluation: the compiled denoiser, or the plain one while attention is captured."""
        # Every capture has processors of its own, so that the compiled one would be traced anew each time.
        return self.denoiser if self.compiled is None or self._capturing else self.compiled

    @abstractmethod
    def encode_uncached(self, prompts: list[str]) -> Conditioning:
        """Encodes prompts; tensors whose name starts with ``negative_`` belong to the negative prompt."""

    @abstractmethod
    def timesteps(self, sigma: Tensor) -> Tensor:
        """The network's own time of each noise level: (B,) float64 -> (B,)."""

    @abstractmethod
    def denoise(self, x: Tensor, timesteps: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """One network call: (N, C, H, W), (N,), named conditioning tensors -> (N, C, H, W)."""

    def encoders(self) -> list[Any]:
        """What encodes text, encoders and tokenizers: encoded prompts are kept for as long as these stay the same."""
        return [value for name, value in vars(self.parts).items() if name.startswith(("text_encoder", "tokenizer"))]

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encodes prompts, each text once for as long as :meth:`encoders` stay the same."""
        texts = check_prompts(prompts)
        state = fingerprint(*self.encoders())
        if state != self._encoded_by:  # fine-tuned, an adapter loaded or scaled, a textual inversion, moved
            self._texts.clear()
            self._negative.clear()
            self._encoded_by = state
        missing = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if missing:
            with self.alone():
                fresh = self.encode_uncached(missing)
            for index, text in enumerate(missing):
                self._texts[text] = self._kept(fresh.row(index))
        found = Conditioning.cat([self._texts[text] for text in texts])
        for text in texts:
            self._texts.move_to_end(text)
        while len(self._texts) > min(TEXTS_KEPT, TEXT_CACHE // self._row_bytes(found)):
            self._texts.popitem(last=False)
        return found

    def _kept(self, row: Conditioning) -> Conditioning:
        """A row to remember: copied, since a view keeps its whole batch alive; all share one negative prompt."""
        if not self._negative:
            self._negative = {name: value.clone() for name, value in row.tensors.items() if name.startswith(NEGATIVE)}
        own = {name: value.clone() for name, value in row.tensors.items() if name not in self._negative}
        return Conditioning({**own, **self._negative}, row.content)

    def _row_bytes(self, conditioning: Conditioning) -> int:
        own = (value for name, value in conditioning.tensors.items() if name not in self._negative)
        return sum(value[0].numel() * value.element_size() for value in own)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """With ``offload=model``: within it no other component lies on the GPU, and afterwards none.

        The hooks by themselves bring a component in when it is called and send only its predecessor in the pipeline's
        order away: text encoders and autoencoder would stay beside the denoiser, since an episode calls it again
        after them.
        """
        self._send_away()
        try:
            yield
        finally:
            self._send_away()

    def _send_away(self) -> None:
        for hook in self.offload_hooks:
            hook.offload()

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Within it the autoencoder is in the precision that its pictures need."""
        if not (self.upcasts and self.vae.dtype == torch.float16 and self.vae.config.force_upcast):
            yield
            return
        # There and back, as the pipeline does: it may be the user's own, and expects its precision to stay.
        self.vae.to(dtype=torch.float32)
        try:
            yield
        finally:
            self.vae.to(dtype=torch.float16)

    @torch.no_grad()
    def predict(
        self,
        x: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        guidance_scale: Tensor,
        capture: Tensor | None = None,
    ) -> Prediction:
        """See :meth:`Backbone.predict`; rows with guidance take a second row of the same network call."""
        size = len(x)
        guided = torch.nonzero(guidance_scale != 1).flatten()
        if len(guided) and not self.capabilities.guidance:
            raise CapabilityError(f"backbone {self.name!r} has no guidance", "set guidance_scale to 1")
        place = torch.cat([torch.arange(size), guided])
        on = place.to(x.device)
        tensors = self._network_tensors(conditioning, guided)
        times = self.timesteps(sigma[place])
        store = self._store(capture)
        self._capturing = store is not None
        with self.captured(store) if store else nullcontext():
            output = self._called(x[on].to(self.dtype), times.to(x.device), tensors).float()
        clean = self.clean(x[on], output, sigma[place])
        text, x0 = clean[:size], clean[:size].clone()
        if len(guided):
            negative, at = clean[size:], guided.to(x.device)
            # Ho and Salimans 2022 (arXiv:2207.12598), equation 6, in x0: the same line as in the noise.
            x0[at] = negative + rows(guidance_scale[guided], x) * (text[at] - negative)
        calls = 1 + (guidance_scale != 1).long()
        features = None if self.tap is None else self.tap.take(size)
        return Prediction(x0, calls, self._maps(store, size), features)

    def _called(self, x: Tensor, times: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """One network call, filled up to a bucket."""
        size = bucket_of(len(x), self.buckets)
        if self.compiled is not None:
            times = times.float()  # whole timesteps come as integers, which would be a graph of their own
        more = {name: filled(value, size) for name, value in tensors.items()}
        return self.denoise(filled(x, size), filled(times, size), more)[: len(x)]

    def captured(self, store: AttentionStore) -> AbstractContextManager[None]:
        """Within it the denoiser's text-to-image attention goes into ``store``."""
        return captured_cross_attention(self.denoiser, store)

    def clean(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        """The clean latents that a network output stands for.

        epsilon: ``(x - std e) / alpha``; v (arXiv:2202.00512): ``alpha x - std v``; flow: ``x - sigma v``.
        """
        if self.parametrisation == "sample":
            return output
        if self.parametrisation == "flow":
            return x - rows(sigma, x) * output
        alpha, std = rows(self.path.alpha(sigma), x), rows(self.path.std(sigma), x)
        if self.parametrisation == "epsilon":
            return (x - std * output) / alpha
        if self.parametrisation == "v_prediction":
            return alpha * x - std * output
        raise ConfigError(f"unknown parametrisation {self.parametrisation!r}", f"one of {', '.join(PARAMETRISATIONS)}")

    def _network_tensors(self, conditioning: Conditioning, guided: Tensor) -> dict[str, Tensor]:
        tensors = {}
        for name, value in conditioning.tensors.items():
            if name.startswith(NEGATIVE):
                continue
            if len(guided):
                other = conditioning.tensors[NEGATIVE + name][guided.to(value.device)]
                value = torch.cat([value, other])
            tensors[name] = value
        return tensors

    def _store(self, capture: Tensor | None) -> AttentionStore | None:
        if capture is None or not bool(capture.any()):
            return None
        if self.capabilities.attention_grid is None:
            raise CapabilityError(f"backbone {self.name!r} has no attention maps", "use refine.maps=phrase")
        return AttentionStore(torch.nonzero(capture).flatten(), self.capabilities.attention_grid)

    @staticmethod
    def _maps(store: AttentionStore | None, size: int) -> Tensor | None:
        if store is None:
            return None
        found = store.mean()
        maps = found.new_zeros((size, *found.shape[1:]))
        maps[store.rows.to(maps.device)] = found
        return maps

    @torch.no_grad()
    def decode(self, x0: Tensor, conditioning: Sequence[Conditioning] | None = None) -> Tensor:
        """The full autoencoder's picture of clean latents, a few at a time."""
        height, width = self.capabilities.image_size
        chunk = max(1, DECODE_PIXELS // (height * width))
        with self.alone(), self.decoding():
            return torch.cat([run_decoder(self.vae, part).clamp(-1, 1) for part in x0.split(chunk)])

    @torch.no_grad()
    def preview(self, x0: Tensor) -> Tensor:
        """The previewer's picture, decoded no larger than ``capabilities.preview_size``."""
        size = self.capabilities.preview_size
        scale = self.capabilities.image_size[0] // self.capabilities.latent_shape[1]
        grid = (max(1, size[0] // scale), max(1, size[1] // scale))
        picture = run_decoder(self.previewer, resized(x0, grid))
        return resized(picture, size).clamp(-1, 1)


def run_decoder(decoder: Any, x0: Tensor) -> Tensor:
    """Calls a diffusers autoencoder on latents of the denoiser's scale: (B, C, h, w) -> (B, 3, H, W) float32."""
    config = getattr(decoder, "config", None)
    scale = getattr(config, "scaling_factor", None) or 1.0
    shift = getattr(config, "shift_factor", None) or 0.0
    return decoder.decode((x0 / scale + shift).to(decoder.dtype), return_dict=False)[0].float()


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *size), antialiased; the same tensor when it has that size."""
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
