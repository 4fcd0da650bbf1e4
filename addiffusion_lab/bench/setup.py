"""The setup that all arms of a measurement share: the model, the scorers, the prompts and the schedule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from omegaconf import OmegaConf

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.process import REFINE_PRESETS, ProcessConfig
from addiffusion_env.envs.settings import EnvSettings, load_backbone, load_scorers
from addiffusion_env.errors import ConfigError, check_settings
from addiffusion_env.files import in_a_line
from addiffusion_env.prompts import Prompt
from addiffusion_env.prompts.emoji_grammar import EmojiPrompts
from addiffusion_env.scorers.image_scores import ImageScorers


@dataclass(frozen=True)
class BenchmarkSetup:
    """The setup of one measurement.

    Attributes:
        backbone: the model; every arm in this process shares its weights.
        scorers: scorers of previews and finished images.
        lanes: images at once.
        steps: evaluations of the schedule.
        preview_every: evaluations between two previews, for arms that do not preview every evaluation.
        images: number of images of an arm that processes a queue.
        settings: keywords from which another process creates the same environment; ``None`` for a model that is not
            registered.
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
        """The model's default schedule and guidance with ``steps`` steps, without refinement."""
        capabilities = self.backbone.capabilities
        return ProcessConfig(
            steps=self.steps,
            spacing=capabilities.default_spacing,
            solver=capabilities.default_solver,
            guidance_scale=capabilities.default_guidance,
            refine=REFINE_PRESETS["off"],
        )

    def prompts(self, count: int, seed: int = 0) -> list[Prompt]:
        """Test prompts of the emoji grammar; their content does not affect other models' speed."""
        return EmojiPrompts(split="test").take(count, seed)

    def environment(self, **changes: Any) -> dict[str, Any]:
        """Keywords of an environment with this setup's model."""
        return {"backbone": self.backbone, "steps": self.steps, "refine": "off", **changes}


LOAD = ("name_or_path", "device", "dtype", "backbone_options")
"""Keywords of the environment that ``--load`` takes."""


def load_options(words: Sequence[str]) -> dict[str, Any]:
    """Parses the words of ``--load``.

    Raises:
        ConfigError: for a word without a value, or a keyword that does not concern loading.

    >>> load_options(["dtype=bfloat16", "backbone_options.engine=openvino"])
    {'dtype': 'bfloat16', 'backbone_options': {'engine': 'openvino'}}
    """
    for word in words:
        if not all(word.partition("=")):
            raise ConfigError(f"--load takes KEY=VALUE, got {word!r}", "for example dtype=bfloat16")
    try:
        found: dict[str, Any] = OmegaConf.to_container(OmegaConf.from_dotlist(list(words)))  # type: ignore[assignment]
    except Exception as error:  # of yaml and of OmegaConf
        cause = f"--load {' '.join(words)} cannot be read: {in_a_line(error)}"
        raise ConfigError(cause, "for example dtype=bfloat16") from error
    check_settings("--load has", found, LOAD)
    return found


def make_setup(
    name: str, lanes: int, steps: int | None, preview_every: int, images: int | None, **load: Any
) -> BenchmarkSetup:
    """The setup of a registered backbone with its default weights and scorers.

    Args:
        name: name of the backbone.
        lanes: images at once.
        steps: steps of the schedule; ``None`` is the backbone's default.
        preview_every: see :class:`BenchmarkSetup`.
        images: see :class:`BenchmarkSetup`; ``None`` is two per lane.
        **load: further keywords of :class:`EnvSettings`, see :data:`LOAD`.
    """
    settings = EnvSettings.of(backbone=name, **load)
    backbone = load_backbone(settings)
    chosen = steps or backbone.capabilities.default_steps
    named = {"backbone": name, "steps": chosen, "refine": "off", **load}
    return BenchmarkSetup(backbone, load_scorers(backbone), lanes, chosen, preview_every, images or 2 * lanes, named)


@dataclass(frozen=True)
class RoundResult:
    """The work done in a round.

    Attributes:
        lane_steps: evaluations of single lanes with this setup's guidance; an unguided one of a guided model counts
            half.
        images: finished images.
    """

    lane_steps: float
    images: int


class Arm(ABC):
    """One benchmarked way of running the denoiser.

    Attributes:
        name: name of its table row.
        pids: its subprocesses, whose time and memory are included.
        own_calls: whether it calls the setup's backbone and scorers, so that these parts can be timed.
    """

    name: str
    pids: tuple[int, ...] = ()
    own_calls: ClassVar[bool] = True

    def prepare(self, number: int) -> None:  # noqa: B027 - most need nothing
        """Called before round ``number``, outside its time: chooses prompts that were not encoded before."""

    @abstractmethod
    def round(self) -> RoundResult:
        """Runs one round of work."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Terminates its subprocesses, if it has any."""
