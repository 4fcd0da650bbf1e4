"""Conflicts of judges: a scorer that a policy was rewarded by, or a sampler selects by, cannot decide a claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from addiffusion_env.backbones import traits_of
from addiffusion_env.errors import ConfigError
from addiffusion_env.samplers.traits import Traits

MEASURE_OF = {"emoji_detector": "correct", "clip": "clip_score", "emoji_preference": "preference"}
"""Judges whose column in the records has a different name."""

# Two implementations of one model, and a model that is part of another scorer.
_SAME = {"image_reward_package": "image_reward", "blip_preference": "emoji_preference"}

_HELD_OUT = ("hps", "image_reward", "aesthetic")


@dataclass(frozen=True)
class Use:
    """Use of a scorer by a sampler.

    Attributes:
        scorer: the model behind it (``"emoji_preference"``, ``"image_reward"``, ``"clip"``, ``"dino"``).
        sampler: the sampler that uses it.
        how: description of the use: ``"its reward term terminal_bonus pays by it"``.
    """

    scorer: str
    sampler: str
    how: str


@dataclass(frozen=True)
class JudgeRoles:
    """Judges, by their measures.

    Attributes:
        independent: measures that no sampler has used, in the given order; the first one decides.
        conflicted: measure -> why it cannot decide.
    """

    independent: tuple[str, ...]
    conflicted: Mapping[str, str]


def uses_of(traits: Mapping[str, Traits], backbone: str) -> tuple[Use, ...]:
    """The scorers that each sampler was optimised by or selects by.

    Args:
        traits: of the samplers, by name.
        backbone: determines the model of ``preference``.
    """
    models = {"preference": traits_of(backbone).preference}
    found = (Use(models.get(part, part), name, how) for name, own in traits.items() for part, how in own.scores_used)
    return tuple(dict.fromkeys(found))


def settle(judges: Sequence[str], uses: Sequence[Use], backbone: str) -> JudgeRoles:
    """Separates judges that may decide from those that are only shown.

    Args:
        judges: names of judges or measures, the one that decides first.
        uses: from :func:`uses_of`.
        backbone: backbone of the images.

    Raises:
        ConfigError: when none may decide, naming each conflict and a judge to add.
    """
    by_model: dict[str, list[Use]] = {}
    for use in uses:
        by_model.setdefault(use.scorer, []).append(use)
    independent: list[str] = []
    conflicted: dict[str, str] = {}
    for name in dict.fromkeys(judges):
        measure = MEASURE_OF.get(name, name)
        own = _behind(name, uses, backbone)
        against = [use for model in own for use in by_model.get(model, ())]
        if against:
            conflicted[measure] = "; ".join(dict.fromkeys(f"{use.sampler}: {use.how}" for use in against))
        else:
            independent.append(measure)
    if not independent:
        raise _no_judge(conflicted, by_model, backbone)
    return JudgeRoles(tuple(dict.fromkeys(independent)), conflicted)


def _no_judge(conflicted: Mapping[str, str], used: Mapping[str, Any], backbone: str) -> ConfigError:
    held_out = (*traits_of(backbone).judges, *_HELD_OUT)
    spare = next((name for name in held_out if name not in used), "a VLM judge")
    if not conflicted:
        return ConfigError("no judge was given, so no claim can be decided", f"add a held-out one: judges=[{spare}]")
    reasons = " | ".join(f"{judge} ({why})" for judge, why in conflicted.items())
    return ConfigError(
        f"no judge is independent of the samplers: {reasons}",
        f"a scorer that a sampler was optimised by or selects by cannot decide alone; add a "
        f"held-out judge: judges=[{spare}]",
    )


def _behind(judge: str, uses: Sequence[Use], backbone: str) -> tuple[str, ...]:
    """The models of a judge; ``preference`` is the one that the samplers of this evaluation use under that name."""
    if judge == "clip_score":
        return ("clip",)
    if judge == "preference":
        seen = {use.scorer for use in uses} - {"clip", "dino"}
        return tuple(sorted(seen)) or (traits_of(backbone).preference,)
    return (_SAME.get(judge, judge),)
