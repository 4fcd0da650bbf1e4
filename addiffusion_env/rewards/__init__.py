"""The reward: named terms, each with its weight and settings, summed. A new term is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar

import numpy as np

from addiffusion_env.backbones.identity import described
from addiffusion_env.errors import ConfigError, ContractError, NumericsError, unknown
from addiffusion_env.old_names import present_settings
from addiffusion_env.registry import Registry
from addiffusion_env.scorers.utility import ImageScoresBatch
from addiffusion_env.settings import check_arguments

TERMS = Registry(
    "reward term",
    {
        "clip_gain": "addiffusion_env.rewards.gains:ClipGain",
        "preference_gain": "addiffusion_env.rewards.gains:PreferenceGain",
        "dino_stability": "addiffusion_env.rewards.dino_stability:DinoStability",
        "nfe_cost": "addiffusion_env.rewards.nfe_cost:NfeCost",
        "terminal_bonus": "addiffusion_env.rewards.terminal_bonus:TerminalBonus",
    },
)


@dataclass(frozen=True)
class Transition:
    """One step of ``B`` lanes, as the reward sees it. At a terminal row "after" is the finished image.

    Attributes:
        clip_before: (B,) CLIP cosine of the preview before the action; NaN when there was no image yet.
        clip_after: (B,) after it; NaN where nobody looked (no term with a weight reads previews).
        preference_before: (B,) preference before, in standard deviations; NaN when there was no image yet.
        preference_after: (B,) after it; NaN likewise.
        dino_similarity: (B,) cosine between the DINO embeddings before and after, 0 without an image before.
        clip_text: (B, D) unit CLIP embeddings of the prompts.
        nfe: (B,) evaluations that the action spent.
        cost_per_nfe: (B,) cost per NFE in this episode.
        action: (B,) what was done.
        terminal: (B,) bool, the image is finished.
        reference: (B,) preference of the same prompt and seed at the reference schedule; NaN when not asked for.
    """

    clip_before: np.ndarray
    clip_after: np.ndarray
    preference_before: np.ndarray
    preference_after: np.ndarray
    dino_similarity: np.ndarray
    clip_text: np.ndarray
    nfe: np.ndarray
    cost_per_nfe: np.ndarray
    action: np.ndarray
    terminal: np.ndarray
    reference: np.ndarray

    @classmethod
    def of(
        cls,
        before: ImageScoresBatch,
        after: ImageScoresBatch,
        clip_text: np.ndarray,
        nfe: np.ndarray,
        cost_per_nfe: np.ndarray,
        action: np.ndarray,
        terminal: np.ndarray,
        reference: np.ndarray | None = None,
    ) -> Transition:
        """From the looks before and after a step; see the class for the others. ``None`` is no reference."""
        nothing = float("nan")
        return cls(
            clip_before=before.score("clip_score", nothing),
            clip_after=after.score("clip_score", nothing),
            preference_before=before.score("preference", nothing),
            preference_after=after.score("preference", nothing),
            dino_similarity=after.similarity(before),
            clip_text=clip_text,
            nfe=nfe,
            cost_per_nfe=cost_per_nfe,
            action=action,
            terminal=terminal,
            reference=np.full(len(nfe), nothing) if reference is None else reference,
        )

    def rows(self, places: Sequence[int]) -> Transition:
        """Some of its lanes, in that order."""
        return Transition(**{item.name: getattr(self, item.name)[list(places)] for item in fields(self)})


class RewardTerm:
    """One named term of a reward: a subclass and its line in ``rewards.TERMS``. A dataclass's fields are its settings.

    Attributes:
        needs_preview: whether it compares previews, which must then be decoded and scored at each decision; ``False``
            for a term that reads finished images alone, or no score at all.
        pays_by: the scorers that it pays by, by their part in :class:`.ImageScorers`: they cannot judge a policy that
            is paid by it.
    """

    needs_preview: ClassVar[bool] = True
    pays_by: ClassVar[Sequence[str]] = ("preference", "clip", "dino")

    def __call__(self, transition: Transition) -> np.ndarray:
        """(B,) values in the term's own unit, before its weight."""
        raise NotImplementedError


@dataclass(frozen=True)
class TermConfig:
    """One term of a reward.

    Attributes:
        weight: factor of the term in the sum.
        settings: fields of the term's class.
    """

    weight: float
    settings: Mapping[str, Any] = field(default_factory=dict)


PRESETS: dict[str, dict[str, TermConfig]] = {
    # Pays for the landed image, saturating like a probability of being right; shaping telescopes to nothing.
    "default": {
        "terminal_bonus": TermConfig(1.0, {"centre": 0.0, "width": 0.4}),
        "nfe_cost": TermConfig(1.0),
        "preference_gain": TermConfig(0.05),
        "clip_gain": TermConfig(0.0),
        "dino_stability": TermConfig(0.0),
    },
    # The published sum, kept for comparison: gains at every step, pay for stability, a cost per NFE too small to matter. Its
    # CLIP gain counts in standard deviations: .095 over previews and finished images of 32 emoji prompts.
    "as_published": {
        "clip_gain": TermConfig(1.0, {"telescopes": 0.0, "std": 0.1}),
        "preference_gain": TermConfig(1.0, {"telescopes": 0.0}),
        "dino_stability": TermConfig(0.75),
        "nfe_cost": TermConfig(1.0),
        "terminal_bonus": TermConfig(1.0),
    },
}

PRESET_COSTS = {"default": 0.01, "as_published": 0.014}
"""The cost per NFE that goes with a preset when none is given."""


class Reward:
    """The weighted sum of named terms.

    Args:
        terms: name -> weight and settings.

    Raises:
        UnknownNameError: for an unknown term.
        ConfigError: for a setting that the term does not have.
    """

    def __init__(self, terms: Mapping[str, TermConfig]) -> None:
        self.terms = dict(terms)
        self._terms = {name: _made(name, config) for name, config in self.terms.items()}

    @property
    def identity(self) -> dict[str, Any]:
        """Terms with their weights and settings, the code of a user's own, and the content of the calibrators they name."""
        return described({"terms": self.terms, "classes": self._terms})

    @property
    def needs_preview(self) -> bool:
        """Whether a term with a weight compares previews, which must then be scored at each decision."""
        return any(self._terms[name].needs_preview for name, config in self.terms.items() if config.weight)

    @property
    def pays_by(self) -> list[tuple[str, str]]:
        """(term, scorer) of each scorer that a term with a weight pays by, by its part in :class:`.ImageScorers`."""
        return [
            (name, part) for name, config in self.terms.items() if config.weight for part in self._terms[name].pays_by
        ]

    def __call__(self, transition: Transition) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Returns the (B,) reward and every weighted term, (B,) each; the terms sum to the reward."""
        parts = {name: config.weight * self._values(name, transition) for name, config in self.terms.items()}
        return np.sum(list(parts.values()), axis=0), parts

    def _values(self, name: str, transition: Transition) -> np.ndarray:
        """(B,) values of a term, before its weight."""
        values, lanes = np.asarray(self._terms[name](transition), np.float64), transition.action.shape
        if values.shape not in ((), lanes):
            raise ContractError(
                f"reward term {name!r} returned an array of shape {values.shape} for {lanes[0]} lanes",
                "return one number a lane",
            )
        return np.broadcast_to(values, lanes)


def _made(name: str, config: TermConfig) -> RewardTerm:
    """A term with its settings.

    Raises:
        UnknownNameError: for an unknown term or setting.
        ConfigError: for a weight or setting of another type, or what is registered and no class of terms.
    """
    kind = TERMS.load(name)
    if not (isinstance(kind, type) and issubclass(kind, RewardTerm)):
        raise ConfigError(
            f"reward term {name!r} is registered as {kind!r:.80}, expected a subclass of RewardTerm",
            "make it a class that is called with a transition; its settings are fields of a dataclass",
        )
    known = [item.name for item in fields(kind) if item.init] if is_dataclass(kind) else []
    for setting in config.settings:
        if setting not in known:
            raise unknown(f"setting of reward term {name!r}", setting, known or ["(none)"])
    check_arguments(f"reward term {name!r}", kind, config.settings)
    if not isinstance(config.weight, int | float) or not np.isfinite(config.weight):
        raise ConfigError(f"weight of reward term {name!r} is {config.weight!r:.100}", "use a finite number")
    try:
        return kind(**config.settings)
    except TypeError as error:
        raise ConfigError(f"reward term {name!r} cannot be made: {error}", "give every setting a default") from error


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
        where: which lane or image.
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
    changes = present_settings({"reward": dict(reward)})["reward"]
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
