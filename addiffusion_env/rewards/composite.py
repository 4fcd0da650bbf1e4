"""The reward: named terms, each with its weight and settings, summed, and all of them reported."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from addiffusion_env.backbones.identity import described
from addiffusion_env.errors import ConfigError, ContractError, NumericsError, unknown
from addiffusion_env.rewards import TERMS
from addiffusion_env.rewards.base import RewardTerm, Transition
from addiffusion_env.rewards.normalisation import PooledScale
from addiffusion_env.scorers.belief import belief_of
from addiffusion_env.settings import check_arguments


@dataclass(frozen=True)
class TermConfig:
    """One term of a reward.

    Attributes:
        weight: factor of the term in the sum.
        settings: keyword arguments of the term's function.
    """

    weight: float
    settings: Mapping[str, Any] = field(default_factory=dict)


PRESETS: dict[str, dict[str, TermConfig]] = {
    # Pays for the landed picture, saturating like a probability of being right; shaping telescopes to nothing.
    "default": {
        "terminal_bonus": TermConfig(1.0, {"centre": 0.0, "width": 0.4}),
        "nfe_price": TermConfig(1.0),
        "preference_gain": TermConfig(0.05),
        "clip_gain": TermConfig(0.0),
        "dino_stability": TermConfig(0.0),
    },
    # The published sum, kept for comparison: gains at every step, pay for stability, a price too small to matter.
    "as_published": {
        "clip_gain": TermConfig(1.0, {"telescopes": 0.0}),
        "preference_gain": TermConfig(1.0, {"telescopes": 0.0}),
        "dino_stability": TermConfig(0.75),
        "nfe_price": TermConfig(1.0),
        "terminal_bonus": TermConfig(1.0),
    },
}

FINISHED_TERMS = ("nfe_price", "terminal_bonus")
"""Terms that read the scores of finished pictures alone, or none; any other, a user's own too, may read previews."""

PRESET_PRICES = {"default": 0.01, "as_published": 0.014}
"""The NFE price that goes with a preset when none is given."""


class Reward:
    """The weighted sum of named terms.

    Args:
        terms: name -> weight and settings.
        scale: pooled standard deviations of the scores.

    Raises:
        UnknownNameError: for an unknown term.
        ConfigError: for a setting that the term does not have.
    """

    def __init__(self, terms: Mapping[str, TermConfig], scale: PooledScale | None = None) -> None:
        self.terms = dict(terms)
        self.scale = scale or PooledScale()
        self._functions: dict[str, RewardTerm] = {name: TERMS.load(name) for name in self.terms}
        for name, config in self.terms.items():
            known = list(inspect.signature(self._functions[name]).parameters)[2:]
            for setting in config.settings:
                if setting not in known:
                    raise unknown(f"setting of reward term {name!r}", setting, known or ["(none)"])
            check_arguments(f"reward term {name!r}", self._functions[name], config.settings)
            if not isinstance(config.weight, int | float) or not np.isfinite(config.weight):
                raise ConfigError(f"weight of reward term {name!r} is {config.weight!r:.100}", "use a finite number")

    @property
    def identity(self) -> dict[str, Any]:
        """Terms with their functions and settings, and the content of the beliefs that these name."""
        names = {str(config.settings["belief"]) for config in self.terms.values() if config.settings.get("belief")}
        beliefs = {name: belief_of(name) for name in sorted(names)}
        return described({"terms": self.terms, "functions": self._functions, "beliefs": beliefs})

    @property
    def sees_previews(self) -> bool:
        """Whether a term with a weight compares previews, which must then be scored at each decision."""
        return any(config.weight for name, config in self.terms.items() if name not in FINISHED_TERMS)

    def __call__(self, transition: Transition) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Returns the (B,) reward and every weighted term, (B,) each; the terms sum to the reward."""
        self.scale.update("clip", transition.clip_after)
        self.scale.update("preference", transition.preference_after)
        parts = {name: config.weight * self._values(name, transition) for name, config in self.terms.items()}
        return np.sum(list(parts.values()), axis=0), parts

    def _values(self, name: str, transition: Transition) -> np.ndarray:
        """(B,) values of a term, before its weight."""
        given = self._functions[name](transition, self.scale, **self.terms[name].settings)
        values, lanes = np.asarray(given, np.float64), transition.action.shape
        if values.shape not in ((), lanes):
            raise ContractError(
                f"reward term {name!r} returned an array of shape {values.shape} for {lanes[0]} lanes",
                "return one number a lane",
            )
        return np.broadcast_to(values, lanes)


def failures(reward: np.ndarray, parts: Mapping[str, np.ndarray]) -> dict[int, tuple[str, float]]:
    """What no policy may learn from: lane -> the first term that is not finite in float32, and its value."""
    found: dict[int, tuple[str, float]] = {}
    for name, values in {**parts, "their sum": reward}.items():
        for lane in np.flatnonzero(~(np.abs(values) <= np.finfo(np.float32).max)):
            found.setdefault(int(lane), (name, float(values[lane])))
    return found


def reward_error(name: str, value: float, where: str, prompt: str) -> NumericsError:
    """The error of a reward that is not finite.

    Args:
        name: of the term.
        value: of it, weighted.
        where: which lane or picture.
        prompt: of its episode.
    """
    return NumericsError(
        f"reward term {name!r} is {value} in {where}, prompt {prompt[:60]!r}",
        "mend the term, or raise max_faults to drop such episodes",
    )


def make_reward(reward: str | Mapping[str, Any] = "default") -> Reward:
    """Makes a reward from a preset's name, or from terms.

    Args:
        reward: ``"default"``, ``"as_published"``, or a mapping of term names to a weight or to
            ``{"weight": w, setting: value, ...}``; the key ``preset`` names what the mapping changes.

    Raises:
        UnknownNameError: for an unknown preset, term or setting.
    """
    if isinstance(reward, str):
        if reward not in PRESETS:
            raise unknown("reward preset", reward, PRESETS)
        return Reward(PRESETS[reward])
    if not isinstance(reward, Mapping):
        raise ConfigError(f"reward must be a preset or a mapping of terms, got {reward!r:.100}", "reward=default")
    changes = dict(reward)
    preset = changes.pop("preset", None)
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        raise unknown("reward preset", str(preset), PRESETS)
    terms = dict(PRESETS[preset]) if preset else {}
    for name, value in changes.items():
        TERMS[name]  # refuses an unknown term, with the nearest known one
        settings = dict(value) if isinstance(value, Mapping) else {"weight": value}
        old = terms.get(name, TermConfig(0.0))
        weight = settings.pop("weight", old.weight)
        terms[name] = TermConfig(weight, {**old.settings, **settings})
    if not terms:
        raise ConfigError("the reward has no terms", "name a preset or at least one term")
    return Reward(terms)
