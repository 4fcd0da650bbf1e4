"""Stable Diffusion with diffusers' models and a hand-written loop body: the backbone of the embedded emoji world."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from addiffusion_env.backbones.base import Backbone, Capabilities, check_prompts
from addiffusion_env.backbones.batches import Conditioning, FeatureHook, Prediction, hook, resized
from addiffusion_env.backbones.conventions import Discrete, convention_of
from addiffusion_env.backbones.fingerprint import LruCache, sampled
from addiffusion_env.backbones.schedules import rows
from addiffusion_env.backbones.text import content_positions, tokenize
from addiffusion_env.errors import CapabilityError

if TYPE_CHECKING:
    from addiffusion_env.backbones.attention import AttentionStore
    from addiffusion_env.backbones.openvino import OpenVino

TEXT_CACHE = 256 * 2**20
"""Maximum size of the cache of encoded prompts in bytes."""

TEXTS_KEPT = 1024
"""Maximum number of cached encoded prompts, which bounds long runs with small embeddings."""

DECODE_PIXELS = 16 * 64 * 64
"""Maximum number of pixels decoded at once. 16 images of 64 pixels fill an AVX2 core: 64 at once take 1.5 times as long
and four times the memory."""

ROWS_ON_CPU = 32
"""Maximum number of rows in a call of the UNet on a CPU, for the same reason."""


@dataclass(frozen=True)
class StableDiffusionParts:
    """The loaded components of a Stable Diffusion pipeline.

    Attributes:
        unet: ``UNet2DConditionModel``.
        vae: ``AutoencoderKL``.
        text_encoder: ``CLIPTextModel``.
        tokenizer: ``CLIPTokenizer``.
        scheduler: any diffusers scheduler of the checkpoint; only its noise levels and parametrisation are used.
        preview: ``AutoencoderTiny`` that takes scaled latents.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    preview: Any


class StableDiffusionBackbone(Backbone):
    """A UNet with cross-attention on CLIP text features, called without a pipeline.

    Every other backbone uses its pipeline's own ``__call__`` (:class:`backbones.pipeline_backbone.PipelineBackbone`).
    This one exists for two reasons. Speed: it encodes many prompts in one call and avoids the Python overhead of a
    pipeline's loop, which matters for the emoji world, whose UNet takes milliseconds on two CPU cores. And it is an
    independent implementation that the general one is tested against.

    Args:
        parts: the loaded components, already on their device and in their dtype.
        capabilities: what this checkpoint supports.
        truncate_prompts: drop the end of a prompt that does not fit, instead of refusing it.

    Attributes:
        denoiser: the UNet.
        vae: the full autoencoder.
        previewer: decoder of previews.
        dtype: precision of the UNet; latents and solver steps are always float32.
        hook: stores the UNet's pooled features.
        engine: runs the UNet and the decoders; ``None`` for torch.
    """

    engine: OpenVino | None = None
    not_identity: ClassVar[tuple[str, ...]] = ("_levels", "_texts", "_negative", "_encoded_by", "_last_text", "hook")

    def __init__(self, parts: StableDiffusionParts, capabilities: Capabilities, truncate_prompts: bool = False) -> None:
        self.parts = parts
        self.denoiser, self.vae, self.previewer = parts.unet, parts.vae, parts.preview
        self.hook: FeatureHook = hook(parts.unet.mid_block)
        self.capabilities = replace(capabilities, feature_dim=int(parts.unet.config.block_out_channels[-1]))
        self.truncate_prompts = truncate_prompts
        self.device = next(parts.unet.parameters()).device
        self.dtype = parts.unet.dtype
        convention = convention_of(parts.scheduler)
        assert isinstance(convention, Discrete)
        self.convention = convention
        self.path = self.convention.path
        self._levels: dict[tuple[int, str], np.ndarray] = {}
        self._texts: LruCache[Conditioning] = LruCache(TEXTS_KEPT)
        self._negative: Tensor | None = None
        self._encoded_by: tuple[Any, ...] = ()
        self._last_text: tuple[Any, Tensor, Tensor] = (None, torch.empty(0), torch.empty(0))
        for item in fields(parts):
            module = getattr(parts, item.name)
            if isinstance(module, nn.Module):
                module.eval().requires_grad_(False)

    def sigmas(self, steps: int, spacing: str) -> np.ndarray:
        """See :meth:`Backbone.sigmas`; spacings are those of :data:`backbones.schedules.VP_SPACINGS`."""
        if (steps, spacing) not in self._levels:  # every image asks for them
            self._levels[steps, spacing] = self.convention.respaced(steps, spacing)
        return self._levels[steps, spacing]

    def timesteps(self, sigma: Tensor) -> Tensor:
        """The training timestep of each noise level; fractional for levels of an early exit."""
        times = self.convention.schedule.timestep_at(sigma)
        # Whole timesteps as integers, as every diffusers pipeline passes them; the embedding is the same.
        return times.long() if bool((times == times.round()).all()) else times.float()

    def timestep_position(self, sigma: Tensor) -> Tensor:
        """Remaining share of the training timesteps: 1 at the noisiest, 1 / T at timestep 0."""
        return self.convention.position(sigma)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encodes prompts, each text once; ``text`` and ``negative``, the empty prompt's, are (B, tokens, D)."""
        texts = check_prompts(prompts)
        state = sampled(self.parts.text_encoder, self.parts.tokenizer)
        if state != self._encoded_by:  # fine-tuned, an adapter scaled, tokens added, moved
            self._texts.clear()
            self._negative, self._encoded_by = None, state
        known = {text: self._texts.get(text) for text in texts}
        if missing := [text for text, found in known.items() if found is None]:
            fresh = self.encode_uncached(missing)
            row = fresh.tensors["text"][0]
            self._texts.capacity = min(TEXTS_KEPT, TEXT_CACHE // (row.numel() * row.element_size()))
            for index, text in enumerate(missing):
                self._texts[text] = known[text] = fresh.rows([index])  # a view would keep its whole batch alive
        for text in texts:
            self._texts.get(text)  # marks the text as recently used
        return Conditioning.cat([found for text in texts if (found := known[text]) is not None])

    @torch.no_grad()
    def encode_uncached(self, prompts: list[str]) -> Conditioning:
        """CLIP's last hidden states of the prompts; all rows share those of the empty negative prompt."""
        ids = tokenize(self.parts.tokenizer, prompts, self.capabilities.max_tokens, self.truncate_prompts)
        content = content_positions(self.parts.tokenizer, ids)
        if self._negative is None:  # encoded along with the first prompts
            ids = torch.cat([ids, tokenize(self.parts.tokenizer, [""], self.capabilities.max_tokens)])
        states = self.parts.text_encoder(ids.to(self.device))[0].to(self.dtype)
        text = states[: len(prompts)]
        if self._negative is None:
            text, self._negative = text.clone(), states[-1:].clone()
        return Conditioning({"text": text, "negative": self._negative.expand(len(text), -1, -1)}, content)

    @torch.no_grad()
    def predict(
        self,
        x: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        guidance_scale: Tensor,
        capture: Tensor | None = None,
    ) -> Prediction:
        """See :meth:`Backbone.predict`; rows with guidance use a second row of the same network call."""
        size = len(x)
        guided = torch.nonzero(guidance_scale != 1).flatten()
        every = len(guided) == size
        at = slice(None) if every else guided.to(x.device)
        place = torch.cat([torch.arange(size), guided])
        noisy = torch.cat([x, x[at]])
        times = self.timesteps(sigma)[place].to(x.device)
        store = self._store(capture)
        text = self._network_text(conditioning, guided)
        if self.engine is None:
            with self._captured(store):
                at_once = ROWS_ON_CPU if self.device.type == "cpu" and store is None else len(noisy)
                parts = zip(*(value.split(at_once) for value in (noisy.to(self.dtype), times, text)), strict=True)
                made = [(self.denoiser(*part, return_dict=False)[0], self.hook.take(at_once)) for part in parts]
            output = made[0][0] if len(made) == 1 else torch.cat([part for part, _ in made])
            taken = [part for _, part in made if part is not None]
            features = torch.cat(taken)[:size] if taken else None
        else:
            output, pooled = self.engine.run(denoise, self.denoiser, noisy, times.float(), text)
            features = pooled[:size]
            if store is not None:  # only torch has attention maps: these rows again, so that no other row changes
                asked, store.rows = store.rows, torch.arange(len(store.rows))
                with self._captured(store):
                    self.denoiser(noisy[asked], times[asked], encoder_hidden_states=text[asked])
                self.hook.take(0)
                store.rows = asked
        clean = self.convention.clean(noisy, output.float(), sigma[place])
        own, negative = clean[:size], clean[size:]
        # Ho and Salimans 2022 (arXiv:2207.12598), equation 6, in x0: equivalent to the form in the noise.
        mixed = negative + rows(guidance_scale[guided], x) * (own[at] - negative)
        if every:
            x0 = mixed
        else:
            x0 = own.clone()
            x0[at] = mixed
        calls = 1 + (guidance_scale != 1).long()
        return Prediction(x0, calls, self._maps(store, size), features)

    def _network_text(self, conditioning: Conditioning, guided: Tensor) -> Tensor:
        """The text input: prompts, then the negative prompts of guided rows; kept while the lanes stay the same."""
        known, rows_of_it, text = self._last_text
        if known is not conditioning or not torch.equal(rows_of_it, guided):
            negative = conditioning.tensors["negative"][guided.to(self.device)]
            text = torch.cat([conditioning.tensors["text"], negative])
            self._last_text = (conditioning, guided, text)
        return text

    def _store(self, capture: Tensor | None) -> AttentionStore | None:
        if capture is None or not bool(capture.any()):
            return None
        if self.capabilities.attention_grid is None:
            raise CapabilityError(f"backbone {self.name!r} has no attention maps", "use refine.maps=phrase")
        from addiffusion_env.backbones.attention import AttentionStore

        return AttentionStore(torch.nonzero(capture).flatten(), self.capabilities.attention_grid)

    def _captured(self, store: AttentionStore | None) -> AbstractContextManager[None]:
        """A context in which attention is written to the store, if there is one."""
        if store is None:
            return nullcontext()
        from addiffusion_env.backbones.attention import captured_attention

        return captured_attention(self.denoiser, store)

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
        """Decodes clean latents with the full autoencoder, a few at a time."""
        scaled = x0 / self.vae.config.scaling_factor
        return self._decoded(self.vae, scaled, self.capabilities.image_size).clamp(-1, 1)

    @torch.no_grad()
    def preview(self, x0: Tensor) -> Tensor:
        """Decodes clean latents with the previewer, at most at ``capabilities.preview_size``."""
        size = self.capabilities.preview_size
        scale = self.capabilities.image_size[0] // self.capabilities.latent_shape[1]
        grid = (max(1, size[0] // scale), max(1, size[1] // scale))
        return resized(self._decoded(self.previewer, resized(x0, grid), size), size).clamp(-1, 1)

    def _decoded(self, decoder: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The images of a decoder, :data:`DECODE_PIXELS` at a time; ``size`` is that of one."""
        at_once = max(1, DECODE_PIXELS // (size[0] * size[1]))
        parts = [run_decoder(decoder, part, self.engine) for part in x.split(at_once)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def refresh(self) -> None:
        """See :meth:`Backbone.refresh`; networks of an engine are converted again if their weights were changed."""
        if self.engine is not None:
            self.engine.refresh(self.denoiser, self.vae, self.previewer)


def run_decoder(decoder: Any, x: Tensor, engine: OpenVino | None = None) -> Tensor:
    """Calls a diffusers autoencoder: (B, C, h, w) -> (B, 3, H, W) float32."""
    x = x.to(next(decoder.parameters()).dtype)  # diffusers' own ``dtype`` visits every layer
    return (decode(decoder, x) if engine is None else engine.run(decode, decoder, x))[0].float()


def decode(decoder: Any, x: Tensor) -> tuple[Tensor, ...]:
    """A diffusers autoencoder's decoder, for :class:`.OpenVino`."""
    return decoder.decode(x, return_dict=False)


def denoise(unet: Any, x: Tensor, times: Tensor, text: Tensor) -> tuple[Tensor, ...]:
    """A UNet's output and the pooled features of its middle block, for :class:`.OpenVino`."""
    output = unet(x, times, encoder_hidden_states=text, return_dict=False)[0]
    features: FeatureHook = hook(unet.mid_block)
    pooled, features.pooled = features.pooled, None
    assert pooled is not None
    return output, pooled
