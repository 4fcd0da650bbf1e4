"""Who has used which scorer: what a policy was paid by, or a method selects by, cannot decide a claim alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from addiffusion_env.backbones.traits import traits_of
from addiffusion_env.envs.settings import refine_config
from addiffusion_env.errors import ConfigError, WeightsError
from addiffusion_env.evaluation.manifest import Manifest
from addiffusion_env.rewards.composite import make_reward

MEASURE_OF = {"emoji_detector": "correct", "clip": "clip_score", "blip_preference": "preference"}
"""Judges whose column in the records has another name than they have."""

_TERMS = {
    "terminal_bonus": ("preference",),
    "preference_gain": ("preference",),
    "clip_gain": ("clip",),
    "dino_stability": ("dino",),
    "nfe_price": (),
}
"""Reward term -> the scorers of a look that it is paid by."""

_WITH_CLIP = ("clip_weight", "belief")
"""Settings of a term that let CLIP pay too."""

_LOOK = ("preference", "clip", "dino")
_SEEN = {"clip": ("clip",), "quality": ("preference", "clip", "dino"), "timestep": (), "price": ()}
"""Observation key -> the scorers that it shows."""

_SELECTS = {"best_of": "preference", "threshold_retry": "preference"}
_HELD_OUT = ("hps", "image_reward", "aesthetic")


@dataclass(frozen=True)
class Use:
    """One scorer in one method's hands.

    Attributes:
        scorer: the model behind it (``"blip_preference"``, ``"image_reward"``, ``"clip"``, ``"dino"``).
        method: who uses it.
        how: in words: ``"its reward term terminal_bonus pays by it"``.
    """

    scorer: str
    method: str
    how: str


@dataclass(frozen=True)
class JudgeRoles:
    """Judges, by their measures.

    Attributes:
        independent: that no method has used, in the order given; the first one decides.
        conflicted: measure -> why it does not.
    """

    independent: tuple[str, ...]
    conflicted: Mapping[str, str]


def uses_of(
    methods: Sequence[str],
    looking: Sequence[str],
    environments: Mapping[str, Mapping[str, Any]],
    backbone: str,
    scorers: Mapping[str, str] | None = None,
) -> tuple[Use, ...]:
    """What each method was optimised, or selects, by.

    Args:
        methods: all names.
        looking: those that look at previews while they decide.
        environments: name of a learned method -> the environment that it was trained on, as its policy file has it. A
            method that looks and has none here is taken to have used every scorer of a look.
        backbone: whose pictures: says which model stands behind ``preference``.
        scorers: the evaluation's own choice of look scorers, by part.
    """
    found: list[Use] = []
    for name in methods:
        environment = environments.get(name)
        parts = dict((environment or {}).get("scorers") or scorers or {})
        if environment is not None:
            pairs = _learned(environment)
        else:
            pairs = _by_name(name, name in looking)
        found += [Use(_model(part, backbone, parts), name, how) for part, how in pairs]
    return tuple(dict.fromkeys(found))


def uses_in(manifest: Manifest) -> tuple[Use, ...]:
    """The same, from an evaluation's manifest and the policy files that it names."""
    looking = [entry.name for entry in manifest.methods if entry.looks]
    return uses_by([entry.name for entry in manifest.methods], looking, manifest.backbone, manifest.settings)


def uses_by(
    methods: Sequence[str], looking: Sequence[str], backbone: str, settings: Mapping[str, Any]
) -> tuple[Use, ...]:
    """The same, from an evaluation's configuration and the policy files that it names.

    A policy whose file is gone is taken to have used every scorer of a look.

    Args:
        methods: all names.
        looking: those that look at previews while they decide.
        backbone: whose pictures.
        settings: with ``policy``, ``hypotheses`` and ``env``.
    """
    from addiffusion_env.agents.policy_file import find_policy, load_config

    environments: dict[str, Mapping[str, Any]] = {}
    runs = (settings.get("policy"), (settings.get("hypotheses") or {}).get("trained_without"))
    for run in (str(run) for run in runs if run is not None):
        try:
            known = load_config(find_policy(run) or Path(run)).environment
        except WeightsError:
            continue
        ours = (name for name in methods if name.startswith(f"{run_name(run)}@"))
        environments.update(dict.fromkeys(ours, known))
    env = settings.get("env") or {}
    scorers = env.get("scorers") if isinstance(env, Mapping) else None
    return uses_of(methods, looking, environments, backbone, scorers)


def run_name(run: str) -> str:
    """What stands before the price in the name of a run's policy.

    >>> run_name("runs/emoji"), run_name("runs/emoji/policy")
    ('policy:emoji', 'policy:emoji')
    """
    path = Path(run)
    return f"policy:{path.parent.name if path.name == 'policy' else path.name}"


def settle(judges: Sequence[str], uses: Sequence[Use], backbone: str) -> JudgeRoles:
    """Tells judges that may decide from those that may only be shown.

    Args:
        judges: names of judges or measures, the one that decides first.
        uses: from :func:`uses_of`.
        backbone: whose pictures.

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
            conflicted[measure] = "; ".join(dict.fromkeys(f"{use.method}: {use.how}" for use in against))
        else:
            independent.append(measure)
    if not independent:
        raise _no_judge(conflicted, by_model, backbone)
    return JudgeRoles(tuple(dict.fromkeys(independent)), conflicted)


def _no_judge(conflicted: Mapping[str, str], used: Mapping[str, Any], backbone: str) -> ConfigError:
    held_out = (*traits_of(backbone).judges, *_HELD_OUT)
    spare = next((name for name in held_out if name not in used), "a VLM judge")
    if not conflicted:
        return ConfigError("no judge was named, so nothing can decide a claim", f"add a held-out one: judges=[{spare}]")
    reasons = " | ".join(f"{judge} ({why})" for judge, why in conflicted.items())
    return ConfigError(
        f"no judge is independent of what it is to judge: {reasons}",
        f"a scorer that was optimised or selected by decides nothing alone; add a held-out judge: judges=[{spare}]",
    )


def _learned(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(part of the look, how) of a learned method."""
    reward = make_reward(environment.get("reward", "default"))
    pairs = [
        (part, f"its reward term {term} pays by it")
        for term, config in reward.terms.items()
        if config.weight != 0
        for part in (*_TERMS.get(term, _LOOK), *(("clip",) if any(map(config.settings.get, _WITH_CLIP)) else ()))
    ]
    refine = refine_config(environment.get("refine", "as_published"))
    if refine.enabled and refine.accept == "score":
        pairs.append(("preference", "it keeps a refinement by it"))
    if refine.enabled and refine.accept == "best":
        kept = ("preference", "clip") if refine.liking.belief or refine.liking.clip_weight else ("preference",)
        pairs += [(part, "it keeps the try that it likes best") for part in kept]
    keys = environment.get("observation_keys") or ("clip", "timestep", "quality")
    paid = {part for part, _ in pairs}
    seen = dict.fromkeys(part for key in keys for part in _SEEN.get(key, _LOOK))
    return pairs + [(part, "it sees it while it decides") for part in seen if part not in paid]


def _by_name(name: str, looks: bool) -> list[tuple[str, str]]:
    """(part of the look, how) of a method without a policy file."""
    kind, _, rest = name.partition(":")
    if kind == "oracle_stop":
        return [("clip" if rest == "clip_score" else "preference", "it keeps the stop that it likes best")]
    if kind in _SELECTS:
        return [(_SELECTS[kind], "it keeps the try that it likes best")]
    if looks and kind != "random":
        return [(part, "it looks, and its policy file is not at hand") for part in _LOOK]
    return []


def _model(part: str, backbone: str, parts: Mapping[str, str]) -> str:
    """The model behind a part of the look."""
    if part != "preference":
        return part
    return _same(parts.get("preference", traits_of(backbone).preference))


def _same(name: str) -> str:
    return "image_reward" if name == "image_reward_package" else name  # one model, two implementations


def _behind(judge: str, uses: Sequence[Use], backbone: str) -> tuple[str, ...]:
    """The models behind a judge; ``preference`` is whatever the methods of this evaluation see under that name."""
    if judge == "clip_score":
        return ("clip",)
    if judge == "preference":
        seen = {use.scorer for use in uses} - {"clip", "dino"}
        return tuple(sorted(seen)) or (_model("preference", backbone, {}),)
    return (_same(judge),)
