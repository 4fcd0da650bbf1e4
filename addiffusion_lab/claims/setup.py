"""From an evaluation's manifest and configuration to its verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from addiffusion_env.agents.learned import run_name
from addiffusion_env.errors import ConfigError, check_settings
from addiffusion_env.evaluation.manifest import Manifest
from addiffusion_env.evaluation.records import Record
from addiffusion_env.prompts import stable_hash
from addiffusion_env.samplers.base import Sampler
from addiffusion_env.samplers.traits import Traits
from addiffusion_lab.claims import HYPOTHESES
from addiffusion_lab.claims.base import NO_JUDGE, Case, Claims, ImageTable, Verdict
from addiffusion_lab.claims.conflicts import MEASURE_OF, Use, settle, uses_of
from addiffusion_lab.claims.statistics import Margin


def judge_evaluation(
    records: Sequence[Record], manifest: Manifest, settings: Mapping[str, Any], names: Sequence[str] = tuple(HYPOTHESES)
) -> tuple[Verdict, ...]:
    """Judges the claims of an evaluation.

    Args:
        records: those that the manifest selects.
        manifest: samplers, judges, margin history and the policy's folder.
        settings: keyword arguments of :class:`Claims`; ``policy`` and ``curve`` may be left out.
        names: registry names of the claims.

    Returns:
        See :func:`~addiffusion_lab.claims.setup.decide`.

    Raises:
        ConfigError: when no judge is independent, no policy was evaluated, or a setting does not exist.
    """
    judges = tuple(manifest.settings.get("judges") or ())
    uses = uses_of(manifest.traits, manifest.backbone)
    deciding = settle(judges, uses, manifest.backbone).independent[0]
    claims = claims_of(manifest.traits, settings)
    return decide(records, claims, judges, [margin_in(manifest, deciding)], uses, names)


def check_claims(samplers: Sequence[Sampler], backbone: str, settings: Mapping[str, Any]) -> Claims:
    """Refuses claims that cannot be judged, before any model is loaded or image generated.

    Args:
        samplers: of the evaluation.
        backbone: backbone of the images.
        settings: the evaluation's configuration.

    Raises:
        ConfigError: when every judge was optimised or selected by, no policy is evaluated, or a setting does not exist.
    """
    traits = {sampler.name: Traits.of(sampler) for sampler in samplers}
    claims = claims_of(traits, settings["hypotheses"])
    settle(tuple(settings.get("judges") or ()), uses_of(traits, backbone), backbone)
    return claims


def claims_of(traits: Mapping[str, Traits], settings: Mapping[str, Any]) -> Claims:
    """Claims from configuration: the policy is the first learned sampler, its curve that at other costs per NFE.

    Args:
        traits: traits of all samplers, by name; they define curves and controls.
        settings: keyword arguments of :class:`Claims`, with lists instead of tuples; and ``trained_without``, the run
            of a policy that was trained without refinement: H4's comparator instead of the policy with masked refine,
            which becomes an additional control.

    Raises:
        ConfigError: for a setting that does not exist, or when no policy was evaluated.

    >>> from addiffusion_env.samplers import named_traits
    >>> names = ("fixed:8", "policy:a@0.01", "policy:a@0.02", "policy:b@0.01")
    >>> claims_of({name: named_traits(name) for name in names}, {}).points
    ('policy:a@0.01', 'policy:a@0.02')
    """
    known = ("trained_without", *(item.name for item in fields(Claims)))
    check_settings("hypotheses have", settings, known)
    given = {key: _frozen(value) for key, value in settings.items() if value is not None}
    without = given.pop("trained_without", None)
    trained = tuple(name for name, own in traits.items() if without and own.curve == f"policy:{run_name(without)}")
    others = {given.get("shuffled"), *given.get("no_refine", ()), *trained}
    others |= {name for members in given.get("refine_controls", {}).values() for name in members}
    with_cost = {name: own.curve for name, own in traits.items() if own.learned and own.curve and name not in others}
    policy = given.pop("policy", None) or next(iter(with_cost), None)
    if policy is None:
        raise ConfigError("hypotheses need a policy, but none was evaluated", "set policy=runs/emoji")
    curve = tuple(name for name, stem in with_cost.items() if stem == with_cost.get(policy) and name != policy)
    masked = tuple(filter(None, (_control(traits, at, "no_refine") for at in (policy, *curve))))
    found: dict[str, Any] = {"curve": curve, "no_refine": trained or masked}
    if trained and masked:
        found["refine_controls"] = {"the policy with refine masked": masked}
    if shuffled := _control(traits, policy, "shuffled"):
        found["shuffled"] = shuffled
    return Claims(policy=policy, **{**found, **given})


def _control(traits: Mapping[str, Traits], sampler: str, control: str) -> str:
    """Name of the sampler that is another one with a single control; empty when it was not run."""
    wanted = (sampler, (control,))
    return next((name for name, own in traits.items() if (own.control_of, tuple(own.controls)) == wanted), "")


def margin_in(manifest: Manifest, measure: str) -> Margin:
    """The current margin, dated by its earliest entry with this value, even if another was set in between.

    Args:
        manifest: of the evaluation.
        measure: the deciding judge's measure, in whose units it is.
    """
    value = manifest.margins[-1].margin
    first = min((entry for entry in manifest.margins if entry.margin == value), key=lambda entry: entry.records_before)
    return Margin(value, measure, first.set_at, first.records_before)


def _frozen(value: Any) -> Any:
    """Converts lists to tuples recursively."""
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def decide(
    records: Sequence[Record],
    claims: Claims,
    judges: Sequence[str],
    margins: Sequence[Margin],
    uses: Sequence[Use],
    names: Sequence[str] = tuple(HYPOTHESES),
) -> tuple[Verdict, ...]:
    """Judges claims; the same records give the same verdicts.

    The first judge that no sampler was optimised by or selects by decides. Further independent judges and those
    with a conflict are reported in addition, marked as such.

    Args:
        records: of all samplers.
        claims: the claims' samplers and criteria.
        judges: names of judges or measures (``"emoji_detector"``, ``"hps"``), fixed before the run.
        margins: one per measure; measures without one have no H1.
        uses: uses of scorers by samplers; see :mod:`addiffusion_lab.claims.conflicts`.
        names: registry names of the claims.

    Returns:
        For each claim: the deciding verdict first, then the others.

    Raises:
        ConfigError: when no judge is independent, or there are no records.
        UnknownNameError: for an unknown claim or judge.
    """
    backbone = records[0].backbone if records else ""
    functions = {name: HYPOTHESES.load(name) for name in names}
    roles = settle(judges, uses, backbone)
    measures = [*roles.independent, *roles.conflicted]
    table = ImageTable.of(records, (*measures, "nfe", "seconds"))
    by_measure = {MEASURE_OF.get(margin.measure, margin.measure): margin for margin in margins}
    found: list[Verdict] = []
    for name, function in functions.items():
        for judge in measures:
            # Keyed, so that verdicts are independent of each other.
            rng = np.random.default_rng(stable_hash("hypotheses", claims.seed, name, judge))
            verdict = function(Case(table, claims, judge, by_measure.get(judge), rng))
            found.append(_marked(verdict, judge, roles.independent, roles.conflicted))
            if verdict.judge == NO_JUDGE:  # the same for all judges
                break
    return tuple(found)


def deciding(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """The deciding verdicts, one per claim."""
    return tuple(verdict for verdict in verdicts if verdict.decides)


def _marked(verdict: Verdict, judge: str, independent: Sequence[str], conflicted: Mapping[str, str]) -> Verdict:
    if judge == independent[0] or verdict.judge == NO_JUDGE:
        return verdict
    if judge in independent:
        return replace(verdict, decides=False)
    reason = f"{verdict.reason}; {judge} cannot decide ({conflicted[judge]})"
    return replace(verdict, decides=False, independent=False, reason=reason)
