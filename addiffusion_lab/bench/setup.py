"""What all arms of a measurement share: the model, the scorers, the prompts and the schedule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from addiffusion_env.backbones.base import Backbone, Conditioning
from addiffusion_env.engine.process import REFINE_PRESETS, ProcessConfig
from addiffusion_env.envs.settings import EnvSettings, load_backbone, load_scorers
from addiffusion_env.prompts import Prompt
from addiffusion_env.prompts.emoji_grammar import EmojiPrompts
from addiffusion_env.scorers.image_scores import ImageScorers


@dataclass(frozen=True)
class BenchmarkSetup:
    """One measurement's setting.

    Attributes:
        backbone: the model; every arm in this process shares its weights.
        scorers: what looks at previews and finished images.
        lanes: images at once.
        steps: evaluations of the schedule.
        preview_every: evaluations between two looks, for the arms that do not look at each.
        images: images of an arm that makes a queue of them.
        settings: keywords from which another process makes the same environment; ``None`` for a model that was built
            here and has no name.
    """

    backbone: Backbone
    scorers: ImageScorers
    lanes: int
    steps: int
    preview_every: int
    images: int
    settings: Mapping[str, Any] | None = None

    @property
    def process(self) -> ProcessConfig:
        """The model's own schedule and guidance on so many steps, without refinement."""
        capabilities = self.backbone.capabilities
        return ProcessConfig(
            steps=self.steps,
            spacing=capabilities.default_spacing,
            solver=capabilities.default_solver,
            guidance_scale=capabilities.default_guidance,
            refine=REFINE_PRESETS["off"],
        )

    def prompts(self, count: int) -> list[Prompt]:
        """The first test prompts of the emoji grammar; their words mean nothing to another model's speed."""
        return EmojiPrompts(split="test").take(count, seed=0)

    def environment(self, **changes: Any) -> dict[str, Any]:
        """Keywords of an environment on this bed's model."""
        return {"backbone": self.backbone, "steps": self.steps, "refine": "off", **changes}


def make_setup(
    name: str, lanes: int, steps: int | None, preview_every: int, images: int | None, **load: Any
) -> BenchmarkSetup:
    """The bed of a registered backbone with its own weights and scorers.

    Args:
        name: of the backbone.
        lanes: images at once.
        steps: of the schedule; ``None`` is the backbone's own number.
        preview_every: see :class:`BenchmarkSetup`.
        images: see :class:`BenchmarkSetup`; ``None`` is two a lane.
        **load: further keywords of :class:`EnvSettings` (``device``, ``dtype``, ``backbone_options``).
    """
    settings = EnvSettings.of(backbone=name, **load)
    backbone = load_backbone(settings)
    chosen = steps or backbone.capabilities.default_steps
    named = {"backbone": name, "steps": chosen, "refine": "off", **load}
    return BenchmarkSetup(backbone, load_scorers(backbone), lanes, chosen, preview_every, images or 2 * lanes, named)


@dataclass(frozen=True)
class Batch:
    """``lanes`` lanes at mixed noise levels, ready for the denoiser.

    Attributes:
        x: (B, C, H, W) plain noise.
        sigma: (B,) float64, the schedule's levels in turn.
        conditioning: B encoded prompts.
        scale: (B,) float64 guidance scales.
    """

    x: Tensor
    sigma: Tensor
    conditioning: Conditioning
    scale: Tensor


def mixed_batch(setup: BenchmarkSetup) -> Batch:
    """The lanes of a bed as they lie in the middle of a queue."""
    process, backbone, lanes = setup.process, setup.backbone, setup.lanes
    generator = torch.Generator().manual_seed(0)
    levels = backbone.sigmas(process.steps, process.spacing)[:-1]
    return Batch(
        torch.randn(lanes, *backbone.capabilities.latent_shape, generator=generator).to(backbone.device),
        torch.from_numpy(np.resize(levels, lanes).copy()),
        backbone.encode([prompt.text for prompt in setup.prompts(lanes)]),
        torch.full((lanes,), process.guidance_scale, dtype=torch.float64),
    )


@dataclass(frozen=True)
class Done:
    """What a round did.

    Attributes:
        lane_steps: evaluations of single lanes, at this bed's guidance: an unguided one of a guided model counts half.
        images: finished images.
    """

    lane_steps: float
    images: int


class Arm(ABC):
    """One way of spending the denoiser.

    Attributes:
        name: head of its row.
        pids: processes of its own, whose time and memory count too.
        own_calls: whether it calls the bed's backbone and scorers, so that their parts can be timed.
    """

    name: str
    pids: tuple[int, ...] = ()
    own_calls: ClassVar[bool] = True

    @abstractmethod
    def round(self) -> Done:
        """Does a round of work."""

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """Ends its processes, if it has any."""
