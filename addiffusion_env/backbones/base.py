"""The contract of a backbone: a text-to-image model that can be driven one evaluation at a time.

A backbone holds weights and nothing else. What belongs to images in the making travels as values, batch first:
:class:`Latents` (where each image is on its way), :class:`Conditioning` (its encoded prompt), :class:`Prediction`
(what the denoiser says). So lanes can be snapshot, split, joined and run at different noise levels in one call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from addiffusion_env.backbones import Traits
from addiffusion_env.backbones.identity import Identified
from addiffusion_env.backbones.schedules import NoisePath
from addiffusion_env.errors import CapabilityError, PromptError
from addiffusion_env.prompts import Prompt
from addiffusion_env.seeding import keyed_noise


@dataclass(frozen=True)
class Capabilities:
    """What a backbone can do; environments ask here instead of testing names.

    Attributes:
        latent_shape: (C, H, W) of one image's latents.
        image_size: (height, width) of a decoded image, in pixels.
        preview_size: (height, width) of a preview.
        guidance: whether classifier-free guidance applies (two network calls an evaluation).
        attention_grid: (h, w) of the captured text-to-image attention maps; ``None`` when there are none.
        max_tokens: length of the text window, special tokens included.
        default_steps: the reference number of steps of this model.
        default_guidance: the guidance scale that goes with it (1 = none).
        default_solver: name of the solver in ``backbones.solvers.SOLVERS``.
        default_spacing: name of the timestep spacing.
        feature_dim: width of the denoiser's own pooled features (:attr:`Prediction.features`); ``None`` without.
        network_calls: rows of network calls that one evaluation takes: (without guidance, with it).
        masks: whether latents are (C, h, w) with places in the image, so that a region can be refined.
        previews: whether there is a cheap look at latents; without, only finished images are scored.
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
class History:
    """What a multistep solver remembers of each lane: its last two predictions.

    Attributes:
        x0: (B, C, H, W) the previous clean prediction; meaningless where ``sigma`` is NaN.
        sigma: (B,) float64, the noise level at which it was made; NaN where there is no previous step.
        older_x0: (B, C, H, W) the clean prediction before that one; meaningless where ``older_sigma`` is NaN.
        older_sigma: (B,) float64, its noise level; NaN where there are not two steps.
        scheduler: for each lane what the pipeline's own scheduler remembers (``solver="scheduler"``), plain values;
            ``None`` where it is not under way.
    """

    x0: Tensor
    sigma: Tensor
    older_x0: Tensor
    older_sigma: Tensor
    scheduler: tuple[Mapping[str, Any] | None, ...] = ()

    def __post_init__(self) -> None:
        if not self.scheduler:
            object.__setattr__(self, "scheduler", (None,) * len(self.x0))

    @classmethod
    def none(cls, like: Tensor) -> History:
        """No history for (B, C, H, W) latents: the next step of a multistep solver is first order."""
        nothing = torch.full((len(like),), float("nan"), dtype=torch.float64)
        return cls(torch.zeros_like(like), nothing, torch.zeros_like(like), nothing)

    def then(self, x0: Tensor, sigma: Tensor) -> History:
        """The history one prediction later: (B, C, H, W) made at (B,) noise levels."""
        return History(x0, sigma, self.x0, self.sigma)

    def row(self, index: int) -> History:
        """Of one image, as a batch of one."""
        at = slice(index, index + 1)
        return History(self.x0[at], self.sigma[at], self.older_x0[at], self.older_sigma[at], self.scheduler[at])

    @staticmethod
    def cat(parts: Sequence[History]) -> History:
        """Joins batches into one."""
        tensors = [torch.cat([getattr(part, name) for part in parts]) for name in HISTORY_TENSORS]
        x0, sigma, older_x0, older_sigma = tensors
        return History(x0, sigma, older_x0, older_sigma, tuple(state for part in parts for state in part.scheduler))


HISTORY_TENSORS = tuple(item.name for item in fields(History) if item.name != "scheduler")


@dataclass(frozen=True)
class Latents:
    """Where a batch of images is.

    Attributes:
        x: (B, C, H, W) noisy latents.
        sigma: (B,) float64 on the CPU, the noise level of each; see :mod:`addiffusion_env.backbones.schedules`.
        history: what the solver remembers of each.
    """

    x: Tensor
    sigma: Tensor
    history: History

    @classmethod
    def start(cls, x: Tensor, sigma: Tensor) -> Latents:
        """Latents without history."""
        return cls(x, sigma.to(torch.float64), History.none(x))

    def __len__(self) -> int:
        return len(self.x)

    def row(self, index: int) -> Latents:
        """One image, as a batch of one."""
        at = slice(index, index + 1)
        return Latents(self.x[at], self.sigma[at], self.history.row(index))

    @staticmethod
    def cat(parts: Sequence[Latents]) -> Latents:
        """Joins batches into one."""
        history = History.cat([part.history for part in parts])
        return Latents(torch.cat([p.x for p in parts]), torch.cat([p.sigma for p in parts]), history)


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts: named tensors, batch first.

    Attributes:
        tensors: for example ``text`` (B, tokens, D) and, with guidance, ``negative`` (B, tokens, D).
        content: for each prompt the positions of its content tokens (no special tokens, no stop words), in order.
        requests: what the backbone itself keeps of each prompt, where that is no tensor (an open pipeline call).
    """

    tensors: Mapping[str, Tensor]
    content: tuple[tuple[int, ...], ...]
    requests: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self.content)

    def row(self, index: int) -> Conditioning:
        """One prompt, as a batch of one."""
        tensors = {name: value[index : index + 1] for name, value in self.tensors.items()}
        return Conditioning(tensors, self.content[index : index + 1], self.requests[index : index + 1])

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Joins batches into one."""
        tensors = {name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors}
        content = tuple(item for part in parts for item in part.content)
        return Conditioning(tensors, content, tuple(item for part in parts for item in part.requests))


@dataclass(frozen=True)
class Prediction:
    """What the denoiser says of a batch of noisy latents.

    Attributes:
        x0: (B, C, H, W) the clean latents it expects, guided where guidance was asked for.
        calls: (B,) int64 rows of network calls spent on each: mostly 2 with guidance, 1 without.
        attention: (B, tokens, h, w) share of each image cell's attention that goes to each text token, averaged over
            layers and heads at the grid of ``Capabilities.attention_grid``; ``None`` unless asked for. Rows that did
            not ask hold zeros.
        features: (B, ``Capabilities.feature_dim``) float32, the middle block's output under the prompt, averaged over
            the image; ``None`` when the model has none.
        steps: for each row what the pipeline's own scheduler is given; empty where the backbone has none.
    """

    x0: Tensor
    calls: Tensor
    attention: Tensor | None = None
    features: Tensor | None = None
    steps: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Load:
    """How to load a backbone; every field can be given as a keyword of ``gym.make``.

    Attributes:
        name_or_path: hub id or local folder; ``None`` is the backbone's own default.
        device: ``"auto"`` takes CUDA, then MPS, then the CPU.
        dtype: ``"auto"`` takes the checkpoint's half precision on CUDA (bfloat16 for Flux, float16 for the others)
            and float32 elsewhere; or a torch dtype's name.
        options: what a particular backbone passes through by name (``compile``, ``vae_tiling`` ...).
    """

    name_or_path: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)


class Backbone(Identified, ABC):
    """A text-to-image model, one denoiser evaluation at a time; holds weights only.

    Records and tables are kept under its ``identity``, which describes what it holds; see :class:`.Identified`.

    Attributes:
        name: the registry name.
        traits: what belongs to its images besides the model: prompts, scorers, judges.
        path: how signal and noise mix; see :mod:`addiffusion_env.backbones.schedules`.
        capabilities: what it can do.
        device: where the denoiser runs.
        decoder_name: what decodes its images and in which precision, for error messages.
    """

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
            WeightsError: for missing, corrupted or wrong weights, naming where they were looked for.
        """

    @classmethod
    def needs(cls) -> str:
        """What this machine lacks to load it without a path of one's own, in a few words; empty when nothing."""
        return ""

    @abstractmethod
    def sigmas(self, steps: int, spacing: str) -> np.ndarray:
        """The noise levels of a schedule: (steps + 1,) float64, falling, the last one being where it lands.

        Raises:
            UnknownNameError: for an unknown spacing.
            ConfigError: for a number of steps that the model has no schedule for.
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
            capture: (B,) bool, rows whose attention maps are wanted; ``None`` for no row.

        Raises:
            CapabilityError: when attention is wanted and the model has none to give.
        """

    def begin(
        self, prompt: Prompt, seed: int, steps: int, spacing: str, stream: str = "initial"
    ) -> tuple[Conditioning, Latents, np.ndarray]:
        """An image before its first evaluation.

        Args:
            prompt: what is drawn.
            seed: of the image; with the prompt's id and ``stream`` it fixes the noise.
            steps: of the schedule.
            spacing: of its noise levels.
            stream: which of the image's streams of noise.

        Returns:
            The encoded prompt and the noisy latents, a batch of one each, and the (m + 1,) noise levels of its way.

        Raises:
            PromptError: when the prompt does not fit the text window.
        """
        levels = self.sigmas(steps, spacing)
        noise = keyed_noise(prompt.prompt_id, seed, self.capabilities.latent_shape, stream)[None].to(self.device)
        latents = Latents.start(noise, torch.tensor([levels[0]], dtype=torch.float64))
        return self.encode([prompt.text]), latents, levels

    def refresh(self) -> None:
        """Looks whether the model was changed from outside since it was measured; most backbones are not."""

    def to(self, *args: Any, **kwargs: Any) -> None:
        """Moves the model to another device or precision.

        Raises:
            CapabilityError: for a backbone that stays where it was loaded.
        """
        raise CapabilityError(f"backbone {self.name!r} stays on {self.device}", "load it with device=")

    def rephrased(self, conditioning: Conditioning, text: str) -> Conditioning:
        """The conditioning of one prompt (a batch of one) under another text, all else being equal."""
        return self.encode([text])

    def scheduler_step(
        self, latents: Latents, prediction: Prediction, conditioning: Conditioning, sigma_next: Tensor
    ) -> Latents:
        """One step of every row with the pipeline's own scheduler (``solver="scheduler"``).

        A step that its plan does not have (an early exit, a refinement) is a first-order one along the path.

        Raises:
            CapabilityError: when the backbone has no scheduler of its own.
        """
        raise CapabilityError(f"backbone {self.name!r} has no scheduler of its own", "use solver=ddim")

    @abstractmethod
    def preview(self, x0: Tensor) -> Tensor:
        """A cheap look: (B, C, H, W) clean latents -> (B, 3, h, w) float32 in [-1, 1], at the scorers' resolution."""

    @abstractmethod
    def decode(self, x0: Tensor, conditioning: Sequence[Conditioning] | None = None) -> Tensor:
        """The full decoder.

        Args:
            x0: (B, C, H, W) clean latents.
            conditioning: of each image, for models whose decoding depends on it (inpainting); ``None`` for any.

        Returns:
            (B, 3, H', W') float32 in [-1, 1].
        """

    def timestep_position(self, sigma: Tensor) -> Tensor:
        """Where on the way a noise level lies: (B,) -> (B,) in [0, 1], 1 at the start, 0 when clean."""
        start = float(self.sigmas(self.capabilities.default_steps, self.capabilities.default_spacing)[0])
        return (sigma / start).clamp(0, 1)

    def timesteps(self, sigma: Tensor) -> Tensor:
        """The network's own time of each noise level, (B,) -> (B,), as callbacks are told it.

        A network that reads something else than a time is told apart by :meth:`timestep_position`.
        """
        return self.timestep_position(sigma)


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """Returns the prompts as a list; refuses a bare string, an empty list and things that are not text.

    Raises:
        PromptError: as said.
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
