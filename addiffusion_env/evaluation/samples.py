"""Images of all samplers side by side: a fixed sample of prompts, chosen before any image is generated."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from addiffusion_env.evaluation.manifest import Manifest
from addiffusion_env.evaluation.records import Plan, Record
from addiffusion_env.evaluation.runner import RECORDS_FOLDER
from addiffusion_env.evaluation.sections import Figure, Section, Table, cut, judged
from addiffusion_env.evaluation.store import RecordStore

SAMPLES = 12
"""Default number of prompts in the sample of an evaluation."""
THUMBNAIL, SHOWN = 192, 128
"""Maximum pixels of a thumbnail's longer side, and its displayed size; smaller images are unchanged."""


def sample_prompts(tasks: Mapping[str, str], count: int) -> list[str]:
    """The first prompt of each kind, then the second of each, and so on, until there are ``count``; by kind.

    Args:
        tasks: prompt id -> its kind, in the evaluation's order.
        count: maximum number of prompts.

    Returns:
        Prompt ids, kinds in order of first appearance. Adding prompts does not change the sample, unless they add a
        new kind or a kind was exhausted.

    >>> sample_prompts({"a": "cats", "b": "cats", "c": "cats", "d": "dogs"}, 3)
    ['a', 'b', 'd']
    """
    kinds: dict[str, list[str]] = {}
    for prompt_id, task in tasks.items():
        kinds.setdefault(task, []).append(prompt_id)
    ranked = sorted((rank, kind) for kind, ids in enumerate(kinds.values()) for rank in range(len(ids)))
    groups = list(kinds.values())
    return [groups[kind][rank] for kind, rank in sorted((kind, rank) for rank, kind in ranked[:count])]


def sample_uids(plans: Sequence[Plan], count: int) -> frozenset[str]:
    """The images that are kept for the report: of every sampler, for the sample's prompts and the first seed."""
    jobs = plans[0].jobs
    chosen = set(sample_prompts({job.prompt.prompt_id: job.prompt.task for job in jobs}, count))
    return frozenset(
        job.uid for entry in plans for job in entry.jobs if job.seed == jobs[0].seed and job.prompt.prompt_id in chosen
    )


def sample_section(
    records: Sequence[Record], manifest: Manifest, folder: Path
) -> tuple[Section | None, dict[str, bytes]]:
    """The section of images side by side, one row per prompt and one column per sampler, and its thumbnails by stem.

    ``None`` where no image of the sample was kept (``samples=0``, or an older version).
    """
    by_key = {(record.sampler, record.prompt_id): record for record in records if record.seed == manifest.seeds[0]}
    tasks = {record.prompt_id: record.task for record in by_key.values()}
    tasks = {prompt_id: tasks[prompt_id] for prompt_id in manifest.prompt_ids if prompt_id in tasks}
    chosen = sample_prompts(tasks, int(manifest.settings.get("samples", SAMPLES)))
    shown = (by_key.get((entry.name, prompt_id)) for prompt_id in chosen for entry in manifest.samplers)
    kept = RecordStore(folder / RECORDS_FOLDER).images(record.uid for record in shown if record)
    if not kept:
        return None, {}
    drawn: dict[str, bytes] = {}
    rows = []
    for row, prompt_id in enumerate(chosen):
        cells: list[str | Figure] = []
        for column, entry in enumerate(manifest.samplers):
            record = by_key.get((entry.name, prompt_id))
            if record is None or record.uid not in kept:
                cells.append("left out" if record is None else "not kept")
                continue
            suffix, small = thumbnail(kept[record.uid])
            stem = f"sample_{row:02d}_{column:02d}{suffix}"
            drawn[stem] = small
            cells.append(Figure(stem, judged(record), SHOWN))
        text = next(record.prompt for record in records if record.prompt_id == prompt_id)
        kind = f"{tasks[prompt_id]}: " if len(set(tasks.values())) > 1 else ""
        rows.append((f"{kind}{cut(text)}", *cells))
    words = (
        f"The first prompts of each kind in the evaluation's order, seed {manifest.seeds[0]}: chosen before any image "
        "was generated. Below each image its NFE"
    )
    judged_any = any(record.correct is not None for record in records)
    words += "; \N{CHECK MARK} and \N{BALLOT X} are the judge's verdict." if judged_any else "."
    table = Table(("prompt", *(entry.name for entry in manifest.samplers)), tuple(rows))
    return Section("Images of the same prompts", (words, table)), drawn


def thumbnail(png: bytes, most: int = THUMBNAIL) -> tuple[str, bytes]:
    """An image small enough for a page: (suffix, file).

    Args:
        png: a PNG file. It is returned as it is when its longer side is at most ``most``.
        most: pixels.

    Returns:
        ``.png`` or, for a larger image, ``.jpg`` scaled down to that size.
    """
    with Image.open(io.BytesIO(png)) as image:
        if max(image.size) <= most:
            return ".png", png
        small = image.convert("RGB")
        small.thumbnail((most, most), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=85, optimize=True)
    return ".jpg", buffer.getvalue()
