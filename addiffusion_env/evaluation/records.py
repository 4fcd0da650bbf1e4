"""The images of an evaluation: how they are planned, and the record of each with its cost and the judges' results."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any

import pyarrow as pa

from addiffusion_env.agents.saved_policy import SavedPolicy
from addiffusion_env.backbones import fingerprint
from addiffusion_env.backbones.identity import described
from addiffusion_env.engine.episode import Episode
from addiffusion_env.engine.lane import Decide, Request
from addiffusion_env.engine.observers import LastDecision, observed
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.evaluation.judges import Judgement
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.base import EpisodeCoroutine, Sampler


@dataclass(frozen=True)
class Record:
    """One image of one sampler.

    Attributes:
        uid: sha1 of variant, prompt and seed: the same image has the same uid in every run.
        variant: sha1 of sampler, process and identity, which changes with any setting or weight; see
            :func:`variant_of`.
        sampler: the sampler's name.
        backbone: the backbone's name.
        prompt: its text.
        prompt_id: its stable id.
        task: the kind of prompt.
        constraints: number of separate things it asks for.
        seed: the image's seed.
        nfe: total number of evaluations, including all attempts, early exits and refinements.
        network_calls: total number of network calls.
        decisions: number of actions of the attempt that was kept.
        actions: these actions: 0 continue, 1 stop, 2 refine.
        refinements: number of refinements in it.
        preference: of the finished image, standard deviations.
        clip_score: of the finished image, raw cosine.
        correct: the rule-based judge's verdict; ``None`` where the prompt has no requirements.
        reason: the judge's reason; empty without a verdict.
        extra: further held-out scorers, by name.
        seconds: this image's share of the wall-clock time: its network calls times the seconds per network call,
            averaged over the sampler's run so far. Scoring and the policy's decisions are included; judging, encoding
            and writing are not. Means over a sampler are exact; single values only reflect the number of calls. A
            sampler that runs its own pipeline, image by image, measures the wall-clock time of each image.
        peak_memory: peak memory in bytes while this image's shard was generated, of all lanes together: on a GPU of
            tensors, otherwise of the whole process; ``None`` where it was not measured.
        identity: sha256 of the models that generated and judged it (:func:`.identity_of`), listed in full in the
            manifest of its evaluation; ``None`` in older records, whose weights are unknown.
        last_step: steps of the schedule that were done at the last decision of the attempt that was kept, those of an
            early exit included; ``None`` where nothing was decided and in older records, as for the next two.
        last_checked: whether that decision was about a finished image, which *stop* accepts.
        probabilities: the policy's probability of continue, stop and refine at that decision, illegal actions 0;
            ``None`` also for a sampler without a policy.
        correctness: the calibrated probability, in (0, 1), that the image is correct, by the calibrator of the
            sampler's own process; ``None`` for a process without one and in older records.
    """

    uid: str
    variant: str
    sampler: str
    backbone: str
    prompt: str
    prompt_id: str
    task: str
    constraints: int
    seed: int
    nfe: float
    network_calls: int
    decisions: int
    actions: tuple[int, ...]
    refinements: int
    preference: float
    clip_score: float
    correct: bool | None
    reason: str
    extra: Mapping[str, float] = field(default_factory=dict)
    seconds: float = float("nan")
    peak_memory: int | None = None
    identity: str | None = None
    last_step: int | None = None
    last_checked: bool | None = None
    probabilities: tuple[float, ...] | None = None
    correctness: float | None = None


_ARROW = {
    "str": pa.string(),
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "tuple[int, ...]": pa.list_(pa.int8()),
    "tuple[float, ...]": pa.list_(pa.float64()),
    "Mapping[str, float]": pa.map_(pa.string(), pa.float64()),
}
_SMALL = ("constraints", "decisions", "refinements", "last_step")  # 32 bits


def _column(item: Field[Any]) -> pa.Field:
    kind, _, absent = str(item.type).partition(" | ")
    return pa.field(item.name, pa.int32() if item.name in _SMALL else _ARROW[kind], nullable=bool(absent))


SCHEMA = pa.schema(map(_column, fields(Record)), metadata={"format": "addiffusion records 1"})
"""The parquet schema: one column per field of :class:`Record`, in its order."""

ADDED = tuple(item.name for item in fields(Record) if item.default is None)
"""Columns that older shards lack; their values are then unknown."""


def completed(table: pa.Table) -> pa.Table:
    """Adds the columns that shards of older versions lack, with unknown values."""
    for name in ADDED:
        if name not in table.column_names:
            place = SCHEMA.get_field_index(name)
            table = table.add_column(place, SCHEMA.field(name), pa.nulls(len(table), SCHEMA.field(name).type))
    return table


def to_table(records: Sequence[Record]) -> pa.Table:
    """Records as an arrow table of :data:`SCHEMA`."""
    rows = [{**asdict(record), "extra": list(record.extra.items())} for record in records]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def from_table(table: pa.Table) -> list[Record]:
    """The records of a table that :func:`to_table` made."""
    return [_from_row(row) for row in table.to_pylist()]


def _from_row(row: Mapping[str, Any]) -> Record:
    chances = row["probabilities"]
    plain = {
        "actions": tuple(row["actions"]),
        "extra": dict(row["extra"]),
        "probabilities": None if chances is None else tuple(chances),
    }
    return Record(**{**{item.name: row[item.name] for item in fields(Record)}, **plain})


def variant_of(sampler: Sampler, backbone: str, process: ProcessConfig, identity: str = "") -> str:
    """40 hex digits that change with the sampler, the process and the models that generate and judge the images.

    Args:
        sampler: known by its ``fingerprint``, where it carries one, as learned samplers do; else by its class and
            public attributes, modules by their weights.
        backbone: its name.
        process: the process, with the content of the files that it names.
        identity: digest of :func:`.identity_of`.
    """
    own = getattr(sampler, "fingerprint", "") or {
        "class": fingerprint.name_of(type(sampler)),
        **described({key: value for key, value in getattr(sampler, "__dict__", {}).items() if key[0] != "_"}),
    }
    settings = {"sampler": sampler.name, "fingerprint": own, "backbone": backbone, "identity": identity}
    return _sha1(json.dumps({**settings, "process": described(process)}, sort_keys=True))


def prompt_key(prompt: Prompt) -> str:
    """64 hex digits of a prompt's id and of everything that affects its image or verdict."""
    return fingerprint.digest_of(
        described([prompt.prompt_id, prompt.text, prompt.phrases, prompt.requirements, prompt.arguments])
    )


def uid_of(variant: str, prompt: str, seed: int) -> str:
    """40 hex digits that identify one image; the prompt enters by its key.

    >>> uid_of("v", "p", 0) == uid_of("v", "p", 0) != uid_of("v", "p", 1)
    True
    """
    return _sha1("\x1f".join((variant, prompt, str(int(seed)))))


def digest_of(texts: Iterable[str]) -> str:
    """One hash for an ordered list of prompt ids or uids."""
    return _sha1("\n".join(texts))


def _sha1(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def by_sampler(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records grouped by sampler, in order of first appearance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.sampler, []).append(record)
    return groups


@dataclass(frozen=True)
class Job:
    """One image to generate."""

    uid: str
    prompt: Prompt
    seed: int


@dataclass(frozen=True)
class Plan:
    """The planned images of one sampler.

    Attributes:
        sampler: bound to the context's backbone.
        process: its decision process.
        variant: see :func:`variant_of`.
        jobs: prompts in order, the seeds of each together.
        identity: identity of the models that generate and judge them; see :func:`.identity_of`.
    """

    sampler: Sampler
    process: ProcessConfig
    variant: str
    jobs: tuple[Job, ...]
    identity: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """A finished episode.

    Attributes:
        episode: the episode.
        last: the last decision of the attempt that was kept; ``None`` where nothing was decided.
    """

    episode: Episode
    last: Decide | None


def with_last_decision(coroutine: EpisodeCoroutine) -> Generator[Request, Any, Finished]:
    """A sampler's coroutine that also returns the last decision."""
    decisions = LastDecision()
    episode = yield from observed(coroutine, [decisions])
    return Finished(episode, decisions.of(episode))


def record_of(
    entry: Plan,
    job: Job,
    done: Finished,
    judgement: Judgement,
    backbone: str,
    seconds: float,
    peak_memory: int | None = None,
) -> Record:
    """The record of one finished episode.

    Args:
        entry: the plan of its sampler, whose process may have a calibrator.
        job: the image.
        done: the episode and its last decision; the policy's probabilities are computed here, outside of the seconds.
        judgement: of the held-out judges.
        backbone: its name.
        seconds: see :class:`.Record`.
        peak_memory: see :class:`.Record`.
    """
    lane, scores, last = done.episode.lane, done.episode.image.scores, done.last
    sampler = entry.sampler
    chances = sampler.probabilities([last])[0] if isinstance(sampler, SavedPolicy) and last is not None else None
    utility = entry.process.refine.utility
    return Record(
        uid=job.uid,
        variant=entry.variant,
        sampler=entry.sampler.name,
        backbone=backbone,
        prompt=job.prompt.text,
        prompt_id=job.prompt.prompt_id,
        task=job.prompt.task,
        constraints=job.prompt.constraints,
        seed=job.seed,
        nfe=float(lane.nfe),
        network_calls=int(lane.calls),
        decisions=len(lane.actions),
        actions=tuple(lane.actions),
        refinements=lane.refinements,
        preference=float(scores.preference[0]),
        clip_score=float(scores.clip_score[0]),
        correct=judgement.correct,
        reason=judgement.reason,
        extra=judgement.extra,
        seconds=seconds,
        peak_memory=peak_memory,
        identity=fingerprint.digest_of(entry.identity),
        last_step=None if last is None else int(last.lane.step),
        last_checked=None if last is None else last.lane.shown is not None,
        probabilities=None if chances is None else tuple(chances.tolist()),
        correctness=None if utility.calibrator is None else 1 / (1 + math.exp(-scores.utility(utility))),
    )
