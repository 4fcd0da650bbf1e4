"""The decision process as configuration: what the three actions do to a lane."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from addiffusion_env.backbones.base import Capabilities
from addiffusion_env.errors import CapabilityError, ConfigError, unknown

MAPS = ("attention", "phrase", "none")
REGIONS = ("token", "weakest", "union", "whole")
ACCEPT = ("always", "score")


class Action(IntEnum):
    """The three actions."""

    CONTINUE = 0
    STOP = 1
    REFINE = 2


@dataclass(frozen=True)
class RefineConfig:
    """What *refine* does at a state.

    The region is re-noised up to a level between where the lane is and the start, brought back to where the lane was
    in ``steps`` evaluations (each counted), and kept or taken back.

    Attributes:
        enabled: whether the action is ever legal.
        maps: where the region comes from: ``attention`` of the prompt's content tokens (one evaluation), ``phrase``
            differences |x0(prompt) - x0(prompt without the phrase)| (half an evaluation a phrase and one half more),
            ``none`` for the whole picture.
        region: ``token`` (all content tokens), ``weakest`` (the phrase with the least effect), ``union`` (all
            phrases) or ``whole``.
        renoise: how far back, as a share of the way to the start: 0 stays, 1 is fresh noise.
        steps: k, evaluations from there back to the lane's level; ``"schedule"`` retraces the schedule's own steps.
        fraction: share of the picture's cells that a region covers before blurring, in (0, 1].
        blur: standard deviation of the Gaussian blur of the mask, in latent cells.
        accept: ``always``, or ``score``: keep the result only when its preview's preference is at least ``margin``
            above the one before.
        margin: in standard deviations of preference; may be negative.
        limit: most refinements in an episode.
        first_step: first step of the schedule at which the action is legal; at least 1, since there is no picture
            before.
    """

    enabled: bool = True
    maps: str = "attention"
    region: str = "token"
    renoise: float = 0.3
    steps: int | str = 2
    fraction: float = 0.35
    blur: float = 1.0
    accept: str = "always"
    margin: float = 0.0
    limit: int = 4
    first_step: int = 1

    def __post_init__(self) -> None:
        for value, known, kind in (
            (self.maps, MAPS, "refine.maps"),
            (self.region, REGIONS, "refine.region"),
            (self.accept, ACCEPT, "refine.accept"),
        ):
            if value not in known:
                raise unknown(kind, value, known)
        wanted = {"token": "attention", "weakest": "phrase", "union": "phrase", "whole": "none"}[self.region]
        if self.maps != wanted:
            raise ConfigError(
                f"refine.region={self.region} goes with refine.maps={wanted}, got {self.maps}", f"set maps={wanted}"
            )
        if not 0 <= self.renoise <= 1:
            raise ConfigError(
                f"refine.renoise must be in [0, 1], got {self.renoise}", "0 stays where the lane is, 1 is the start"
            )
        if not 0 < self.fraction <= 1:
            raise ConfigError(
                f"refine.fraction must be in (0, 1], got {self.fraction}", "0.35 covers a third of the picture"
            )
        if isinstance(self.steps, str) and self.steps != "schedule":
            raise ConfigError(f"refine.steps must be a number or 'schedule', got {self.steps!r}", "use 2, or schedule")
        if not isinstance(self.steps, str) and self.steps < 1:
            raise ConfigError(f"refine.steps must be at least 1, got {self.steps}", "raise it")
        for name, least in (("limit", 0), ("first_step", 1), ("blur", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"refine.{name} must be at least {least}, got {getattr(self, name)}", "raise it")


REFINE_PRESETS: dict[str, RefineConfig] = {
    # As the proposal has it: content tokens' cross-attention, blurred, k = 2.
    "as_published": RefineConfig(),
    # Trying again in earnest: fresh noise, and every step that the lane had done so far once more.
    "restart": RefineConfig(maps="none", region="whole", renoise=1.0, steps="schedule", accept="always"),
    # Trying again in short: the whole picture from fresh noise, two evaluations back to where it was.
    "retry": RefineConfig(maps="none", region="whole", renoise=1.0, accept="always"),
    # The region of the phrase that shows least, re-noised half-way, kept when it scores better.
    "weakest": RefineConfig(maps="phrase", region="weakest", renoise=0.5, accept="score"),
    "union": RefineConfig(maps="phrase", region="union", renoise=1.0, accept="score"),
    "off": RefineConfig(enabled=False, maps="none", region="whole"),
}


@dataclass(frozen=True)
class ProcessConfig:
    """How a lane moves.

    Attributes:
        steps: evaluations of the full schedule.
        spacing: timestep spacing of that schedule.
        solver: name in :data:`backbones.solvers.SOLVERS`.
        guidance_scale: classifier-free guidance; 1 is none.
        landing_steps: evaluations that *stop* spends, or ``"auto"``; see :mod:`addiffusion_env.backbones.landing`.
        decide_every: evaluations that one *continue* takes.
        refine: what *refine* does.
    """

    steps: int = 20
    spacing: str = "trailing"
    solver: str = "ddim"
    guidance_scale: float = 4.0
    landing_steps: int | str = "auto"
    decide_every: int = 1
    refine: RefineConfig = field(default_factory=RefineConfig)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps must be at least 1, got {self.steps}", "raise it")
        if self.decide_every < 1:
            raise ConfigError(f"decide_every must be at least 1, got {self.decide_every}", "1 decides after every step")
        if isinstance(self.landing_steps, str) and self.landing_steps != "auto":
            raise ConfigError(f"landing_steps must be a number or 'auto', got {self.landing_steps!r}", "use 4, or auto")
        if not isinstance(self.landing_steps, str) and self.landing_steps < 0:
            raise ConfigError(f"landing_steps must be 0 or more, got {self.landing_steps}", "use 4, or auto")

    def cost(self, calls: int) -> tuple[float, int]:
        """(NFE, network calls) of so many network calls: one evaluation as the schedule takes it counts 1 NFE.

        >>> ProcessConfig(guidance_scale=4).cost(1), ProcessConfig(guidance_scale=1).cost(1)
        ((0.5, 1), (1.0, 1))
        """
        return calls / (1 if self.guidance_scale == 1 else 2), calls

    def check(self, capabilities: Capabilities, backbone: str) -> None:
        """Refuses what the backbone cannot do.

        Raises:
            CapabilityError: naming the setting and what would work.
        """
        if self.guidance_scale != 1 and not capabilities.guidance:
            raise CapabilityError(
                f"backbone {backbone!r} has no guidance, got guidance_scale={self.guidance_scale}", "set it to 1"
            )
        if self.refine.enabled and self.refine.maps == "attention" and capabilities.attention_grid is None:
            raise CapabilityError(
                f"backbone {backbone!r} has no attention maps for refine", "use refine=weakest or refine=retry"
            )
