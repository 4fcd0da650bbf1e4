"""The reward: a weighted sum of named terms. A new term is one class and one line here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar

import numpy as np

from addiffusion_env.errors import ConfigError, ContractError, NumericsError, unknown
from addiffusion_env.registry import Registry
from addiffusion_env.scorers.image_scores import ImageScoresBatch
from addiffusion_env.scorers.utility import Utility
from addiffusion_env.settings import check_arguments, present_reward

TERMS = Registry(
    "reward term",
    {
        "clip_gain": "addiffusion_env.rewards:ClipGain",
        "preference_gain": "addiffusion_env.rewards:PreferenceGain",
        "dino_stability": "addiffusion_env.rewards:DinoStability",
        "nfe_cost": "addiffusion_env.rewards:NfeCost",
        "terminal_bonus": "addiffusion_env.rewards:TerminalBonus",
    },
)


@dataclass(frozen=True)
class Transition:
    """One step of ``B`` lanes, the input of reward terms. In a terminal row "after" is the finished image.

    Attributes:
        clip_before: (B,) CLIP score of the preview before the action; NaN if there was no image yet.
        clip_after: (B,) CLIP score after it; NaN if previews are not scored (no term with a weight reads them).
        preference_before: (B,) preference before the action, in standard deviations; NaN if there was no image yet.
        preference_after: (B,) preference after it; NaN if previews are not scored.
        dino_similarity: (B,) cosine of the DINO embeddings before and after; 0 without an image before.
        clip_text: (B, D) unit CLIP embeddings of the prompts.
        nfe: (B,) NFE of the action.
        cost_per_nfe: (B,) cost per NFE in this episode.
        action: (B,) the action taken.
        terminal: (B,) bool, whether the image is finished.
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
    ) -> Transition:
        """From the scores before and after a step; the other arguments are the attributes of the class."""
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
        )


class RewardTerm:
    """Base class of reward terms; each is a subclass with a line in ``rewards.TERMS``. Dataclass fields are settings.

    Attributes:
        needs_preview: whether it depends on the scores of previews, which must then be decoded and scored at each
            decision; ``False`` for a term that reads only finished images, or no scores.
        pays_by: the scorers it depends on, by their part in :class:`.ImageScorers`: they must not judge a policy that
            was trained on it.
    """

    needs_preview: ClassVar[bool] = True
    pays_by: ClassVar[Sequence[str]] = ("preference", "clip", "dino")

    def __call__(self, transition: Transition) -> np.ndarray:
        """Computes (B,) values, before weighting."""
        raise NotImplementedError


@dataclass(frozen=True)
class Gain(RewardTerm):
    """Gain of a score over the step, divided by ``std``; subclasses choose the score.

    It is ``gamma Phi(s') - Phi(s)`` with the potential Phi = score / std (Ng, Harada and Russell 1999, theorem 1). Phi
    is 0 before the first image and, with ``telescopes=1``, 0 at the end, so that a whole episode sums to 0 at gamma 1:
    shaping then cannot reward idling, and the optimal policy is that of the other terms. With ``telescopes=0`` the gain
    of the finished image counts as well, and the gain of the first image does not (the literal sum of the published
    design).

    Attributes:
        gamma: discount of the potential.
        telescopes: whether the gains of an episode sum to 0.
        std: the unit; the score's standard deviation over images for a gain in standard deviations. A constant, so
            that the reward is the same in every process and after every restart.
    """

    gamma: float = 1.0
    telescopes: float = 1.0
    std: float = 1.0

    def _of(self, transition: Transition, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        potential, following = (np.nan_to_num(score) / self.std for score in (before, after))
        if self.telescopes:
            return self.gamma * np.where(transition.terminal, 0.0, following) - potential
        return np.where(np.isnan(before), 0.0, following - potential)


@dataclass(frozen=True)
class ClipGain(Gain):
    """Gain of the CLIP score over the step, divided by ``std`` (0.1 for the emoji backbone)."""

    pays_by = ("clip",)

    def __call__(self, transition: Transition) -> np.ndarray:
        """From the previous decision to this one."""
        return self._of(transition, transition.clip_before, transition.clip_after)


@dataclass(frozen=True)
class PreferenceGain(Gain):
    """Gain of the preference score, which is already in standard deviations."""

    pays_by = ("preference",)

    def __call__(self, transition: Transition) -> np.ndarray:
        """From the previous decision to this one."""
        return self._of(transition, transition.preference_before, transition.preference_after)


class DinoStability(RewardTerm):
    """DINO cosine between the images before and after, in [-1, 1].

    It rewards idling (about +0.75 per step), so all presets except ``as_published`` give it weight 0.
    """

    pays_by = ("dino",)

    def __call__(self, transition: Transition) -> np.ndarray:
        """The transition's value."""
        return transition.dino_similarity


class NfeCost(RewardTerm):
    """Negative NFE of the action (early exit and refinement included) times the episode's cost per NFE."""

    needs_preview = False
    pays_by = ()

    def __call__(self, transition: Transition) -> np.ndarray:
        """0 or less."""
        return -transition.cost_per_nfe * transition.nfe


@dataclass(frozen=True)
class TerminalBonus(RewardTerm):
    """Utility of the finished, fully decoded image; 0 before the end.

    Attributes:
        centre: utility at which a saturating bonus is one half.
        width: 0 for the utility u itself, in standard deviations; above 0 the bonus is ``sigmoid((u - centre) /
            width)``, in [0, 1], which saturates like a probability of being correct.
        clip_weight: see :class:`.Utility`, as for the next three; with weight 0 utility is preference.
        clip_centre: the CLIP score that counts as 0.
        clip_scale: its standard deviation.
        calibrator: with ``centre=0, width=1`` the bonus is the calibrated probability of being correct.
        utility: the utility built from these four.
    """

    centre: float = 0.0
    width: float = 0.0
    clip_weight: float = 0.0
    clip_centre: float = 0.0
    clip_scale: float = 1.0
    calibrator: str | None = None
    utility: Utility = field(init=False, repr=False)

    needs_preview = False

    def __post_init__(self) -> None:
        utility = Utility(self.clip_weight, self.clip_centre, self.clip_scale, self.calibrator)
        object.__setattr__(self, "utility", utility)

    @property
    def pays_by(self) -> tuple[str, ...]:  # type: ignore[override]
        """The scorers that its utility depends on."""
        return self.utility.parts

    def __call__(self, transition: Transition) -> np.ndarray:
        """The bonus in terminal rows, else 0."""
        scores = (transition.preference_after.astype(np.float64), transition.clip_after.astype(np.float64))
        value = self.utility(*scores, transition.clip_text)
        if self.width > 0:
            value = 1 / (1 + np.exp(-(value - self.centre) / self.width))
        return np.where(transition.terminal, value, 0.0)


@dataclass(frozen=True)
class TermConfig:
    """One term of a reward.

    Attributes:
        weight: weight of the term in the sum.
        settings: values of the fields of the term's class.
    """

    weight: float
    settings: Mapping[str, Any] = field(default_factory=dict)


PRESETS: dict[str, dict[str, TermConfig]] = {
    # Rewards the finished image, saturating like a probability of being correct; shaping telescopes to 0.
    "default": {
        "terminal_bonus": TermConfig(1.0, {"centre": 0.0, "width": 0.4}),
        "nfe_cost": TermConfig(1.0),
        "preference_gain": TermConfig(0.05),
        "clip_gain": TermConfig(0.0),
        "dino_stability": TermConfig(0.0),
    },
    # The published sum, kept for comparison: gains at every step, reward for stability, a negligible cost per NFE. Its
    # CLIP gain is in standard deviations: .095 over previews and finished images of 32 emoji prompts.
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
        UnknownNameError: for an unknown term or setting.
        ConfigError: for a weight or setting of the wrong type.
    """

    def __init__(self, terms: Mapping[str, TermConfig]) -> None:
        self.terms = dict(terms)
        self._terms = {name: _term(name, config) for name, config in self.terms.items()}

    @property
    def identity(self) -> dict[str, Any]:
        """Terms with their weights and settings, the code of user-defined ones, and the calibrators' content."""
        from addiffusion_env.backbones.identity import described

        return described({"terms": self.terms, "classes": self._terms})

    @property
    def needs_preview(self) -> bool:
        """Whether a term with a weight reads the scores of previews, which must then be scored at each decision."""
        return any(self._terms[name].needs_preview for name, config in self.terms.items() if config.weight)

    @property
    def pays_by(self) -> list[tuple[str, str]]:
        """(term, scorer) for each scorer that a weighted term depends on, by its part in :class:`.ImageScorers`."""
        return [
            (name, part) for name, config in self.terms.items() if config.weight for part in self._terms[name].pays_by
        ]

    def __call__(self, transition: Transition) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Returns the (B,) reward and the weighted terms, (B,) each, which sum to it."""
        parts = {name: config.weight * self._values(name, transition) for name, config in self.terms.items()}
        return np.sum(list(parts.values()), axis=0), parts

    def _values(self, name: str, transition: Transition) -> np.ndarray:
        """(B,) values of a term, before weighting."""
        values, lanes = np.asarray(self._terms[name](transition), np.float64), transition.action.shape
        if values.shape not in ((), lanes):
            raise ContractError(
                f"reward term {name!r} returned an array of shape {values.shape} for {lanes[0]} lanes",
                "return one number per lane",
            )
        return np.broadcast_to(values, lanes)


def _term(name: str, config: TermConfig) -> RewardTerm:
    """Constructs a term with its settings.

    Raises:
        UnknownNameError: for an unknown term or setting.
        ConfigError: for a weight or setting of the wrong type, or a registered object that is not a RewardTerm.
    """
    kind = TERMS.load(name)
    if not (isinstance(kind, type) and issubclass(kind, RewardTerm)):
        raise ConfigError(
            f"reward term {name!r} is registered as {kind!r:.80}, expected a subclass of RewardTerm",
            "register a class whose instances are called with a transition; its settings are dataclass fields",
        )
    known: list[str] = [item.name for item in fields(kind) if item.init] if is_dataclass(kind) else []
    for setting in config.settings:
        if setting not in known:
            raise unknown(f"setting of reward term {name!r}", setting, ["weight", *known])
    check_arguments(f"reward term {name!r}", kind, config.settings)
    if not isinstance(config.weight, int | float) or not np.isfinite(config.weight):
        raise ConfigError(f"weight of reward term {name!r} is {config.weight!r:.100}", "use a finite number")
    try:
        return kind(**config.settings)
    except TypeError as error:
        raise ConfigError(
            f"reward term {name!r} cannot be constructed: {error}", "give every setting a default"
        ) from error


def failures(reward: np.ndarray, parts: Mapping[str, np.ndarray]) -> dict[int, tuple[str, float]]:
    """Non-finite rewards: lane -> (name, value) of the first term that is not finite in float32."""
    found: dict[int, tuple[str, float]] = {}
    for name, values in {**parts, "their sum": reward}.items():
        for lane in np.flatnonzero(~(np.abs(values) <= np.finfo(np.float32).max)):
            found.setdefault(int(lane), (name, float(values[lane])))
    return found


def reward_error(name: str, value: float, where: str, prompt: str) -> NumericsError:
    """The error for a reward that is not finite.

    Args:
        name: name of the term.
        value: its weighted value.
        where: which lane or image.
        prompt: the episode's prompt.
    """
    return NumericsError(
        f"reward term {name!r} is {value} in {where}, prompt {prompt[:60]!r}",
        "correct the term, or raise max_faults to drop such episodes",
    )


def make_reward(reward: str | Mapping[str, Any] = "default") -> Reward:
    """Builds a reward from a preset's name, or from terms.

    Args:
        reward: ``"default"``, ``"as_published"``, or a mapping of term names to a weight or to
            ``{"weight": w, setting: value, ...}``; the key ``preset`` names a preset that the mapping modifies.

    Raises:
        UnknownNameError: for an unknown preset, term or setting.
    """
    if isinstance(reward, str):
        if reward not in PRESETS:
            raise unknown("reward preset", reward, PRESETS)
        return Reward(PRESETS[reward])
    if not isinstance(reward, Mapping):
        raise ConfigError(f"reward must be a preset or a mapping of terms, got {reward!r:.100}", "reward=default")
    changes = present_reward(reward)
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
