"""Filmstrips: observations and actions of a sampler on its best, median, worst and most expensive image.

Images are functions of prompt, seed and sampler, so the chosen ones are regenerated with every preview kept.
That costs four images per sampler and does not affect the timing of the evaluation.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from addiffusion_env.agents.learned import PolicySampler
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.episode import Episode
from addiffusion_env.engine.lane import Lane
from addiffusion_env.engine.observers import Decisions, observed, previews_of
from addiffusion_env.envs import rendering
from addiffusion_env.envs.rendering import Cell
from addiffusion_env.evaluation.records import Plan, Record, by_sampler
from addiffusion_env.evaluation.runner import EvaluationContext
from addiffusion_env.evaluation.store import OTHER_OUT, png_bytes, write_atomically
from addiffusion_env.evaluation.tables import focus_of
from addiffusion_env.files import writing_to
from addiffusion_env.rewards import Reward, Transition, make_reward
from addiffusion_env.samplers.base import Sampler
from addiffusion_env.samplers.traits import Traits
from addiffusion_env.scorers.image_scores import ImageScoresBatch

FILMSTRIPS_FILE = "filmstrips.parquet"
COLUMNS = 8
"""Cells per row of a filmstrip."""


@dataclass(frozen=True)
class Filmstrip:
    """The filmstrip of one image.

    Attributes:
        uid: uid of its record.
        sampler: the sampler's name.
        role: ``best``, ``median`` or ``worst`` by preference, or ``costliest`` by NFE.
        frames: PNG files: the preview after each action, the finished image last.
        actions: one per frame.
        preferences: the preference of each frame; NaN where no preview was scored.
        terms: reward term -> its value for each action; empty for samplers without a reward.
    """

    uid: str
    sampler: str
    role: str
    frames: tuple[bytes, ...]
    actions: tuple[int, ...]
    preferences: tuple[float, ...]
    terms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


_SCHEMA = pa.schema(
    [
        pa.field("uid", pa.string()),
        pa.field("sampler", pa.string()),
        pa.field("role", pa.string()),
        pa.field("frames", pa.list_(pa.binary())),
        pa.field("actions", pa.list_(pa.int8())),
        pa.field("preferences", pa.list_(pa.float64())),
        pa.field("terms", pa.map_(pa.string(), pa.list_(pa.float64()))),
    ]
)


def pick_examples(records: Iterable[Record]) -> list[tuple[str, Record]]:
    """(role, record) of a sampler's best, median and worst image by preference and its most expensive; each once."""
    ordered = sorted(records, key=lambda record: (-record.preference, record.uid))
    if not ordered:
        return []
    costliest = max(range(len(ordered)), key=lambda place: ordered[place].nfe)
    places = {"best": 0, "median": len(ordered) // 2, "worst": len(ordered) - 1, "costliest": costliest}
    chosen: dict[int, str] = {}
    for role, place in places.items():
        chosen.setdefault(place, role)
    return [(role, ordered[place]) for place, role in chosen.items()]


def render_filmstrips(
    plans: Sequence[Plan], records: Sequence[Record], context: EvaluationContext, out_dir: Path | str
) -> list[Filmstrip]:
    """Makes filmstrips of the report's focus sampler and all samplers that need previews, unless they exist."""
    groups = by_sampler(records)
    traits = {entry.sampler.name: Traits.of(entry.sampler) for entry in plans}
    focus = focus_of(traits)
    chosen = [entry for entry in plans if traits[entry.sampler.name].needs_preview or entry.sampler.name == focus]
    cast = [
        (entry, role, record) for entry in chosen for role, record in pick_examples(groups.get(entry.sampler.name, []))
    ]
    filmstrips = read_filmstrips(out_dir)
    if [(filmstrip.uid, filmstrip.role) for filmstrip in filmstrips] == [
        (record.uid, role) for _, role, record in cast
    ]:
        return filmstrips
    filmstrips = [
        filmstrip for entry in chosen for filmstrip in _play(entry, [c for c in cast if c[0] is entry], context)
    ]
    table = pa.Table.from_pylist(
        [{**asdict(filmstrip), "terms": list(filmstrip.terms.items())} for filmstrip in filmstrips], _SCHEMA
    )
    with writing_to(Path(out_dir), "write filmstrips to", OTHER_OUT):
        write_atomically(table, Path(out_dir) / FILMSTRIPS_FILE, compression="none")
    return filmstrips


def _play(entry: Plan, cast: Sequence[tuple[Plan, str, Record]], context: EvaluationContext) -> list[Filmstrip]:
    jobs = {job.uid: job for job in entry.jobs}
    engine = Engine(context.backbone, context.scorers, solver=entry.process.solver, decider=entry.sampler.decide)
    wanted = [jobs[record.uid] for _, _, record in cast]
    seen = [Decisions() for _ in wanted]
    episodes: list[Episode] = engine.run(
        observed(entry.sampler.coroutine(context.backbone, entry.process, job.prompt, job.seed), [own])
        for job, own in zip(wanted, seen, strict=True)
    )
    return [
        filmstrip_of(role, record, episode, own, context.backbone, terms_of(entry.sampler, own, episode))
        for (_, role, record), episode, own in zip(cast, episodes, seen, strict=True)
    ]


def filmstrip_of(
    role: str,
    record: Record,
    episode: Episode,
    decisions: Decisions,
    backbone: Backbone,
    terms: Mapping[str, tuple[float, ...]],
) -> Filmstrip:
    """Pairs each action with its result: the preview at the next decision, or the finished image.

    A sampler without intermediate decisions (an oracle, a whole pipeline) has its last action and the finished image.
    """
    lanes = decisions.lanes_of(episode)[1:]
    actions = episode.lane.actions[-len(lanes) - 1 :]
    image = episode.image.pixels()
    blank = np.full_like(image, 127)  # a further attempt that has not begun
    previews = [blank if preview is None else preview for preview in previews_of(backbone, lanes)]
    frames = tuple(png_bytes(pixels) for pixels in (*previews, image))
    image_scores = [*(lane.scores for lane in lanes), episode.image.scores]
    preferences = tuple(float("nan") if scores is None else float(scores.preference[0]) for scores in image_scores)
    return Filmstrip(record.uid, record.sampler, role, frames, tuple(actions), preferences, terms)


def read_filmstrips(out_dir: Path | str) -> list[Filmstrip]:
    """The filmstrips of a run's folder; empty when they were not made or cannot be read."""
    path = Path(out_dir) / FILMSTRIPS_FILE
    if not path.exists():
        return []
    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException):
        return []  # they are regenerated from the records
    return [
        Filmstrip(
            row["uid"],
            row["sampler"],
            row["role"],
            tuple(row["frames"]),
            tuple(row["actions"]),
            tuple(row["preferences"]),
            {name: tuple(values) for name, values in row.get("terms") or ()},
        )
        for row in rows
    ]


def draw_filmstrip(filmstrip: Filmstrip) -> np.ndarray:
    """A filmstrip as one image, (H, W, 3) uint8; see :func:`addiffusion_env.envs.rendering.draw_filmstrip`."""
    shown = zip(filmstrip.frames, filmstrip.actions, filmstrip.preferences, strict=True)
    cells = [Cell(_pixels(png), action, preference) for png, action, preference in shown]
    return rendering.draw_filmstrip(cells, columns=COLUMNS)


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def terms_of(sampler: Sampler, decisions: Decisions, episode: Episode) -> dict[str, tuple[float, ...]]:
    """Reward term -> its value for each action of a finished episode.

    Empty for a sampler that has no reward, or needs no previews: rewards are computed from preview scores.

    Args:
        sampler: the sampler of the episode.
        decisions: its recorded decisions.
        episode: the finished episode.
    """
    if not isinstance(sampler, PolicySampler) or not sampler.needs_preview:
        return {}
    reward = make_reward(sampler.config.environment.get("reward", "default"))
    return traced([*decisions.lanes_of(episode), episode.lane], reward, sampler.cost_per_nfe)


def traced(lanes: Sequence[Lane], reward: Reward, cost_per_nfe: float) -> dict[str, tuple[float, ...]]:
    """Reward term -> (D,) values of the D transitions between D + 1 lanes, the last of which has ended.

    Args:
        lanes: one at each decision, with its scores, and the finished one.
        reward: holds the terms.
        cost_per_nfe: cost of one NFE.
    """
    before, after = [lane.scores for lane in lanes[:-1]], [lane.scores for lane in lanes[1:]]
    moves = len(lanes) - 1
    # The prompt's embedding comes with the scores; a lane before its first evaluation has none.
    text = next(scores.clip_text for scores in reversed(after) if scores is not None)
    transition = Transition.of(
        ImageScoresBatch.of(before),
        ImageScoresBatch.of(after),
        clip_text=np.repeat(text, moves, axis=0),
        nfe=np.diff([lane.nfe for lane in lanes]),
        cost_per_nfe=np.full(moves, cost_per_nfe),
        action=np.array(lanes[-1].actions),
        terminal=np.arange(moves) == moves - 1,
    )
    _, parts = reward(transition)
    return {name: tuple(np.nan_to_num(values).tolist()) for name, values in parts.items() if np.any(values != 0)}
