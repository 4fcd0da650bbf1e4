"""The contract of a backbone: a text-to-image model that can be driven one evaluation at a time.

A backbone holds weights and nothing else. The state of the images being generated is passed as values, batch first:
:class:`.Latents` (noisy latents and noise level), :class:`.Conditioning` (encoded prompts), :class:`.Prediction` (the
denoiser's output). Lanes can therefore be snapshot, split, joined and run at different noise levels in one call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from addiffusion_env.backbones import Identified, Traits
from addiffusion_env.backbones.batches import Conditioning, Latents, Prediction
from addiffusion_env.backbones.fingerprint import LruCache
from addiffusion_env.backbones.schedules import NoisePath, early_exit_evaluations, respace
from addiffusion_env.errors import CapabilityError, PromptError
from addiffusion_env.prompts import Prompt, keyed_noise


@dataclass(frozen=True)
class Capabilities:
    """What a backbone supports; environments query it instead of testing names.

    Attributes:
        latent_shape: (C, H, W) of one image's latents.
        image_size: (height, width) of a decoded image, in pixels.
        preview_size: (height, width) of a preview.
        guidance: whether classifier-free guidance applies (two network calls per evaluation).
        attention_grid: (h, w) of the captured text-to-image attention maps; ``None`` when there are none.
        max_tokens: length of the text window, special tokens included.
        default_steps: the recommended number of steps of this model.
        default_guidance: the recommended guidance scale (1 = no guidance).
        default_solver: name of the solver in ``backbones.solvers.SOLVERS``.
        default_spacing: name of the timestep spacing.
        feature_dim: width of the denoiser's pooled features (:attr:`.Prediction.features`); ``None`` if it has none.
        network_calls: network rows per evaluation: (without guidance, with guidance).
        masks: whether latents are spatial, (C, h, w), so that a region can be refined.
        previews: whether latents can be previewed cheaply; if not, only finished images are scored.
    """

    latent_shape: tuple[int, int, int]
    image_size: tuple[int, int]
    preview_size: tuple[int, int]
    guidance: bool
    attention_grid: tuple[int, int] | None
    max_tokens: int
    default_steps: int = 50
    default_guidance: float = 7.5
    default_solver: str = "ddim"
    default_spacing: str = "leading"
    feature_dim: int | None = None
    network_calls: tuple[int, int] = (1, 2)
    masks: bool = True
    previews: bool = True


@dataclass(frozen=True)
class Load:
    """How to load a backbone; every field can be given as a keyword of ``gym.make``.

    Attributes:
        name_or_path: hub id or local folder; ``None`` is the backbone's default checkpoint.
        device: ``"auto"`` selects CUDA, then MPS, then the CPU.
        dtype: ``"auto"`` selects the checkpoint's half precision on CUDA (bfloat16 for Flux, float16 for the others)
            and float32 elsewhere; or the name of a torch dtype.
        options: further options of a particular backbone (``compile``, ``vae_tiling`` ...).
    """

    name_or_path: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)


class Backbone(Identified, ABC):
    """A text-to-image model that is driven one denoiser evaluation at a time; it holds weights only.

    Records and tables are stored under its ``identity``, which describes its content; see :class:`.Identified`.

    Attributes:
        name: the registry name.
        traits: the prompts, scorers and judges that go with it.
        path: how signal and noise are mixed; see :mod:`addiffusion_env.backbones.schedules`.
        capabilities: what it supports.
        device: device of the denoiser.
        decoder_name: name and precision of the image decoder, for error messages.
    """

    not_identity: ClassVar[tuple[str, ...]] = ("_early_exits",)
    name: ClassVar[str]
    traits: ClassVar[Traits] = Traits()
    path: NoisePath
    capabilities: Capabilities
    device: torch.device
    decoder_name: str = "the model's own"

    @classmethod
    @abstractmethod
    def from_pretrained(cls, load: Load | None = None) -> Backbone:
        """Loads the model.

        Raises:
            WeightsError: for missing, corrupted or wrong weights; the message names the location.
        """

    @classmethod
    def needs(cls) -> str:
        """What this machine lacks to load the default checkpoint, in a few words; empty if nothing is missing."""
        return ""

    @abstractmethod
    def sigmas(self, steps: int, spacing: str) -> np.ndarray:
        """The noise levels of a schedule: (steps + 1,) float64, decreasing; the last one is the final level.

        Raises:
            UnknownNameError: for an unknown spacing.
            ConfigError: for a number of steps that the model's schedule does not support.
        """

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encodes prompts.

        Raises:
            PromptError: for an empty list, or a prompt longer than ``capabilities.max_tokens``.
        """

    @abstractmethod
    def predict(
        self,
        x: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        guidance_scale: Tensor,
        capture: Tensor | None = None,
    ) -> Prediction:
        """One evaluation of the denoiser for a batch, each row at its own noise level.

        Args:
            x: (B, C, H, W) noisy latents.
            sigma: (B,) float64 noise levels, above 0.
            conditioning: ``B`` encoded prompts.
            guidance_scale: (B,) float64; rows with scale 1 take one network call, others two.
            capture: (B,) bool, rows whose attention maps are requested; ``None`` for no row.

        Raises:
            CapabilityError: when attention is requested and the model does not provide it.
        """

    def begin(
        self, images: Sequence[tuple[Prompt, int]], steps: int, spacing: str
    ) -> tuple[Conditioning, Latents, list[np.ndarray]]:
        """The initial states of images, before their first evaluation; prompts are encoded in one call.

        Args:
            images: the prompt and seed of each, which determine its noise.
            steps: number of steps of the schedule.
            spacing: timestep spacing of the schedule.

        Returns:
            The B encoded prompts, the B noisy latents, and for each image the schedule's (m + 1,) noise levels.

        Raises:
            PromptError: when a prompt does not fit the text window.
        """
        levels = self.sigmas(steps, spacing)
        latents = self._noise([(prompt, seed, "initial") for prompt, seed in images], levels)
        return self.encode([prompt.text for prompt, _ in images]), latents, [levels] * len(images)

    def resumed(self, prompt: Prompt, seed: int, steps: int | None) -> Conditioning:
        """The conditioning of an image that was begun before, also in another process.

        ``steps`` is its :attr:`.Conditioning.steps`.
        """
        return self.encode([prompt.text])

    def draw(
        self, prompt: Prompt, seed: int, steps: int, spacing: str, stream: str = "initial"
    ) -> tuple[Latents, np.ndarray]:
        """The noisy latents of one image, a batch of one, and the schedule's (m + 1,) noise levels.

        ``stream`` names the noise: of the start, or of an image's n-th refinement. The prompt is not encoded.
        """
        levels = self.sigmas(steps, spacing)
        return self._noise([(prompt, seed, stream)], levels), levels

    def _noise(self, streams: Sequence[tuple[Prompt, int, str]], levels: np.ndarray) -> Latents:
        shape = self.capabilities.latent_shape
        noises = [keyed_noise(prompt.prompt_id, seed, shape, stream) for prompt, seed, stream in streams]
        noise = noises[0][None] if len(noises) == 1 else torch.stack(noises)
        return Latents.start(noise.to(self.device), torch.full((len(noises),), float(levels[0]), dtype=torch.float64))

    def refresh(self) -> None:
        """Re-measures the model if it was changed from outside since the last measurement; a no-op for most."""

    def to(self, *args: Any, **kwargs: Any) -> None:
        """Moves the model to another device or precision.

        Raises:
            CapabilityError: for a backbone that cannot be moved after loading.
        """
        raise CapabilityError(f"backbone {self.name!r} cannot be moved from {self.device}", "load it with device=")

    def rephrased(self, conditioning: Conditioning, text: str) -> Conditioning:
        """The conditioning of one prompt (a batch of one) with its text replaced and everything else unchanged."""
        return self.encode([text])

    def scheduler_step(
        self, latents: Latents, prediction: Prediction, conditioning: Conditioning, sigma_next: Tensor
    ) -> Latents:
        """One step of every row with the pipeline's own scheduler (``solver="scheduler"``).

        A step that is not in its plan (early exit, refinement) is taken as a first-order step along the path.

        Raises:
            CapabilityError: when the backbone has no diffusers scheduler.
        """
        raise CapabilityError(f"backbone {self.name!r} has no diffusers scheduler", "use solver=ddim")

    @abstractmethod
    def preview(self, x0: Tensor) -> Tensor:
        """A cheap preview: (B, C, H, W) clean latents -> (B, 3, h, w) float32 in [-1, 1], at the scorers' size."""

    @abstractmethod
    def decode(self, x0: Tensor, conditioning: Sequence[Conditioning] | None = None) -> Tensor:
        """Decodes clean latents with the full decoder.

        Args:
            x0: (B, C, H, W) clean latents.
            conditioning: conditioning of each image, for models whose decoding depends on it (inpainting).

        Returns:
            (B, 3, H', W') float32 in [-1, 1].
        """

    def timestep_position(self, sigma: Tensor) -> Tensor:
        """Position of noise levels on the schedule: (B,) -> (B,) in [0, 1], 1 at the start, 0 when clean."""
        start = float(self.sigmas(self.capabilities.default_steps, self.capabilities.default_spacing)[0])
        return (sigma / start).clamp(0, 1)

    def early_exit_levels(self, rest: np.ndarray, early_exit_steps: int | str) -> np.ndarray:
        """The noise levels of an early exit: the rest of a schedule in fewer steps; ``rest`` itself if it is as short.

        Args:
            rest: (r + 1,) noise levels from the lane's current one to the end.
            early_exit_steps: see :func:`.schedules.early_exit_evaluations`.

        Returns:
            (m + 1,) noise levels; remembered, since the lanes of a process exit at few levels.
        """
        key = (rest.tobytes(), early_exit_steps)
        known = self._early_exits.get(key)
        if known is None:
            positions = self.timestep_position(torch.from_numpy(rest)).numpy().copy()
            evaluations = early_exit_evaluations(early_exit_steps, float(positions[0]), len(rest) - 1)
            positions[-1] = 0.0  # the end of the schedule is position 0, even if the checkpoint's last sigma is not 0
            nothing_saved = evaluations == len(rest) - 1
            known = self._early_exits[key] = rest if nothing_saved else respace(rest, evaluations, positions)
        return known

    @cached_property
    def _early_exits(self) -> LruCache[np.ndarray]:
        return LruCache(256)

    def timesteps(self, sigma: Tensor) -> Tensor:
        """The network's timestep of each noise level, (B,) -> (B,), as passed to callbacks.

        Backbones whose networks do not read a timestep return :meth:`timestep_position`.
        """
        return self.timestep_position(sigma)


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """Returns the prompts as a list.

    Raises:
        PromptError: for a bare string, an empty list, or an entry that is not a string.
    """
    if isinstance(prompts, str):
        raise PromptError("prompts must be a list of strings, got one string", "wrap it: [prompt]")
    found = list(prompts)
    if not found:
        raise PromptError("no prompts were given", "pass at least one")
    for prompt in found:
        if not isinstance(prompt, str):
            raise PromptError(f"a prompt must be a string, got {type(prompt).__name__}", "pass its text")
    return found
