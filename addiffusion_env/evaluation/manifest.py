"""What an evaluation is: methods, prompts, seeds, margin, settings and versions, beside its records."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from addiffusion_env import __version__
from addiffusion_env.backbones.devices import instruction_set
from addiffusion_env.errors import RunFolderError
from addiffusion_env.evaluation.records import Record, digest_of, uid_of
from addiffusion_env.evaluation.runner import RECORDS_FOLDER, Plan
from addiffusion_env.evaluation.statistics.arrays import positive_margin
from addiffusion_env.evaluation.store import RecordStore
from addiffusion_env.files import whole_file
from addiffusion_env.typed import check_types

MANIFEST_FILE = "evaluation.json"
PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "open_clip_torch",
    "stable-baselines3",
    "sb3-contrib",
    "gymnasium",
    "numpy",
    "scipy",
    "statsmodels",
    "pyarrow",
    "torchvision",
    "image-reward",
    "torch-fidelity",
    "torchmetrics",
    "lpips",
    "openai",
    "google-genai",
)
"""What numbers may depend on; those that are not installed are left out of the manifest."""


@dataclass(frozen=True)
class MethodEntry:
    """One method of an evaluation.

    Attributes:
        name: unique.
        variant: see :func:`addiffusion_env.evaluation.records.variant_of`.
        looks: whether it needed previews.
        process: its decision process, as plain values.
    """

    name: str
    variant: str
    looks: bool
    process: Mapping[str, Any]


@dataclass(frozen=True)
class MarginEntry:
    """When a margin was set.

    Attributes:
        margin: in the primary measure's units.
        set_at: UTC, ISO 8601.
        records_before: records that were there already; above 0 the margin may have been chosen with knowledge.
    """

    margin: float
    set_at: str
    records_before: int


@dataclass(frozen=True)
class Manifest:
    """What an evaluation is.

    Attributes:
        methods: in order.
        backbone: its name.
        prompt_ids: in order.
        prompts_digest: sha1 of them: two evaluations with the same one drew the same prompts.
        seeds: shared by all methods.
        margins: every margin that was set for this folder, oldest first; the last one counts.
        price: of one NFE, for regret.
        settings: the resolved configuration.
        versions: of the packages that matter.
        scorers: measure -> which model it comes from and on what scale, in words.
    """

    methods: tuple[MethodEntry, ...]
    backbone: str
    prompt_ids: tuple[str, ...]
    prompts_digest: str
    seeds: tuple[int, ...]
    margins: tuple[MarginEntry, ...]
    price: float
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    scorers: Mapping[str, str] = field(default_factory=dict)

    def select(self, records: Iterable[Record]) -> list[Record]:
        """The records of this evaluation, by method, prompt and seed in its order; others in the folder are left."""
        found = {record.uid: record for record in records}
        uids = (
            uid_of(method.variant, prompt_id, seed)
            for method in self.methods
            for prompt_id in self.prompt_ids
            for seed in self.seeds
        )
        return [found[uid] for uid in uids if uid in found]


def write_manifest(
    out_dir: Path | str,
    plans: Sequence[Plan],
    backbone: str,
    settings: Mapping[str, Any],
    margin: float,
    price: float,
    scorers: Mapping[str, str] | None = None,
) -> Manifest:
    """Writes ``evaluation.json`` before anything is made, keeping the history of margins that it finds.

    Raises:
        ConfigError: for a margin that is not above 0.
        RunFolderError: when the folder cannot be written.
    """
    margin = positive_margin(margin)
    folder = Path(out_dir)
    store = RecordStore(folder / RECORDS_FOLDER)
    margins = read_manifest(folder).margins if (folder / MANIFEST_FILE).exists() else ()
    if not margins or margins[-1].margin != margin:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        margins = (*margins, MarginEntry(margin, now, len(store.read())))
    jobs = plans[0].jobs
    prompt_ids = tuple(dict.fromkeys(job.prompt.prompt_id for job in jobs))
    manifest = Manifest(
        methods=tuple(
            MethodEntry(plan.method.name, plan.variant, bool(plan.method.looks), asdict(plan.process)) for plan in plans
        ),
        backbone=backbone,
        prompt_ids=prompt_ids,
        prompts_digest=digest_of(prompt_ids),
        seeds=tuple(dict.fromkeys(job.seed for job in jobs)),
        margins=margins,
        price=float(price),
        settings=dict(settings),
        versions=versions(),
        scorers=dict(scorers or {}),
    )
    write_text(folder / MANIFEST_FILE, json.dumps(asdict(manifest), indent=1))
    return manifest


def read_manifest(out_dir: Path | str) -> Manifest:
    """Reads ``evaluation.json``.

    Raises:
        RunFolderError: when it is missing or damaged.
    """
    path = Path(out_dir) / MANIFEST_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest(
            **{
                **raw,
                "methods": tuple(MethodEntry(**entry) for entry in raw["methods"]),
                "margins": tuple(MarginEntry(**entry) for entry in raw["margins"]),
                "prompt_ids": tuple(raw["prompt_ids"]),
                "seeds": tuple(raw["seeds"]),
            }
        )
        for part in (manifest, *manifest.methods, *manifest.margins):
            check_types("", part)
        if not manifest.methods or not manifest.margins:
            raise ValueError("it names no method or no margin")
        return manifest
    except FileNotFoundError as error:
        raise RunFolderError(
            f"no evaluation in {path.parent}: {MANIFEST_FILE} is missing", "run eval_sb3.py"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}", "delete it and run again: records are kept") from error


def versions() -> dict[str, str]:
    """Versions of this package, Python and what results depend on, and the machine with its instruction set."""
    found = {"addiffusion-env": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {instruction_set()}"
    return {**found, "machine": machine}


def write_text(path: Path, text: str) -> Path:
    """Writes a file under another name, then renames it.

    Raises:
        RunFolderError: when it cannot be written.
    """
    try:
        with whole_file(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror}", "free space, or choose another out=") from error
    return path
