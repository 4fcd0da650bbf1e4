"""Film strips: what a method saw and did on its best, median, worst and costliest picture.

Pictures are functions of prompt, seed and method, so the chosen ones are simply made again, with every preview kept.
That costs four pictures a method and leaves the timing of the evaluation alone.
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

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.baselines.traits import Traits
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.episode import Episode
from addiffusion_env.engine.observers import Decisions, observed, previews_of
from addiffusion_env.envs import rendering
from addiffusion_env.envs.rendering import Cell
from addiffusion_env.errors import RunFolderError
from addiffusion_env.evaluation.records import Record, by_method
from addiffusion_env.evaluation.runner import Plan, Stage
from addiffusion_env.evaluation.store import png_bytes, write_atomically
from addiffusion_env.evaluation.tables import focus_of
from addiffusion_env.evaluation.traces import terms_of

FILMS_FILE = "films.parquet"
COLUMNS = 8
"""Cells a row of a strip: it has its prompt beside it."""


@dataclass(frozen=True)
class Film:
    """One picture in the making.

    Attributes:
        uid: of its record.
        method: the method's name.
        role: ``best``, ``median`` or ``worst`` by preference, or ``costliest`` by NFE.
        frames: PNG files: the preview after each action, the finished picture last.
        actions: one for each frame.
        preferences: the preference of each frame; NaN where nobody looked.
        terms: reward term -> what each action was paid; none for methods that have no reward.
    """

    uid: str
    method: str
    role: str
    frames: tuple[bytes, ...]
    actions: tuple[int, ...]
    preferences: tuple[float, ...]
    terms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


_SCHEMA = pa.schema(
    [
        pa.field("uid", pa.string()),
        pa.field("method", pa.string()),
        pa.field("role", pa.string()),
        pa.field("frames", pa.list_(pa.binary())),
        pa.field("actions", pa.list_(pa.int8())),
        pa.field("preferences", pa.list_(pa.float64())),
        pa.field("terms", pa.map_(pa.string(), pa.list_(pa.float64()))),
    ]
)


def cast_roles(records: Iterable[Record]) -> list[tuple[str, Record]]:
    """(role, record) of a method's best, median and worst picture by preference and its costliest; each once."""
    ordered = sorted(records, key=lambda record: (-record.preference, record.uid))
    if not ordered:
        return []
    costliest = max(range(len(ordered)), key=lambda place: ordered[place].nfe)
    places = {"best": 0, "median": len(ordered) // 2, "worst": len(ordered) - 1, "costliest": costliest}
    chosen: dict[int, str] = {}
    for role, place in places.items():
        chosen.setdefault(place, role)
    return [(role, ordered[place]) for place, role in chosen.items()]


def shoot(plans: Sequence[Plan], records: Sequence[Record], stage: Stage, out_dir: Path | str) -> list[Film]:
    """Makes the films of the report's focus and of all methods that need previews, unless they are there already."""
    groups = by_method(records)
    traits = {entry.method.name: Traits.of(entry.method) for entry in plans}
    focus = focus_of(traits)
    chosen = [entry for entry in plans if traits[entry.method.name].needs_preview or entry.method.name == focus]
    cast = [(entry, role, record) for entry in chosen for role, record in cast_roles(groups.get(entry.method.name, []))]
    films = read_films(out_dir)
    if [(film.uid, film.role) for film in films] == [(record.uid, role) for _, role, record in cast]:
        return films
    films = [film for entry in chosen for film in _play(entry, [c for c in cast if c[0] is entry], stage)]
    table = pa.Table.from_pylist([{**asdict(film), "terms": list(film.terms.items())} for film in films], _SCHEMA)
    try:
        write_atomically(table, Path(out_dir) / FILMS_FILE, compression="none")
    except OSError as error:
        raise RunFolderError(f"cannot write films to {out_dir}: {error.strerror}", "choose another out=") from error
    return films


def _play(entry: Plan, cast: Sequence[tuple[Plan, str, Record]], stage: Stage) -> list[Film]:
    jobs = {job.uid: job for job in entry.jobs}
    engine = Engine(stage.backbone, stage.scorers, solver=entry.process.solver, decider=entry.method.decide)
    wanted = [jobs[record.uid] for _, _, record in cast]
    seen = [Decisions() for _ in wanted]
    episodes: list[Episode] = engine.run(
        observed(entry.method.program(stage.backbone, entry.process, job.prompt, job.seed), [own])
        for job, own in zip(wanted, seen, strict=True)
    )
    return [
        film_of(role, record, episode, own, stage.backbone, terms_of(entry.method, own, episode))
        for (_, role, record), episode, own in zip(cast, episodes, seen, strict=True)
    ]


def film_of(
    role: str,
    record: Record,
    episode: Episode,
    decisions: Decisions,
    backbone: Backbone,
    terms: Mapping[str, tuple[float, ...]],
) -> Film:
    """Pairs each action with what it led to: the preview at the next decision, or the finished picture.

    A method that decides nothing on the way (an oracle, a whole pipeline) has its last action and the finished picture.
    """
    lanes = decisions.lanes_of(episode)[1:]
    actions = episode.lane.actions[-len(lanes) - 1 :]
    previews = [preview for preview in previews_of(backbone, lanes) if preview is not None]
    frames = tuple(png_bytes(pixels) for pixels in (*previews, episode.picture.pixels()))
    looks = [*(lane.look for lane in lanes), episode.picture.look]
    preferences = tuple(float("nan") if look is None else float(look.preference[0]) for look in looks)
    return Film(record.uid, record.method, role, frames, tuple(actions), preferences, terms)


def read_films(out_dir: Path | str) -> list[Film]:
    """The films of a run's folder; none when they were not made or cannot be read."""
    path = Path(out_dir) / FILMS_FILE
    if not path.exists():
        return []
    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException):
        return []  # they are made again from the records
    return [
        Film(
            row["uid"],
            row["method"],
            row["role"],
            tuple(row["frames"]),
            tuple(row["actions"]),
            tuple(row["preferences"]),
            {name: tuple(values) for name, values in row.get("terms") or ()},
        )
        for row in rows
    ]


def draw_film(film: Film) -> np.ndarray:
    """A film as one picture, (H, W, 3) uint8; see :func:`addiffusion_env.envs.rendering.draw_film`."""
    shown = zip(film.frames, film.actions, film.preferences, strict=True)
    cells = [Cell(_pixels(png), action, preference) for png, action, preference in shown]
    return rendering.draw_film(cells, columns=COLUMNS)


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
