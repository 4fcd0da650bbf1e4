"""Manifest of an evaluation: samplers, prompts, seeds, margin, settings and versions."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from addiffusion_env import __version__
from addiffusion_env.backbones import fingerprint
from addiffusion_env.backbones.devices import instruction_set
from addiffusion_env.backbones.identity import difference_words
from addiffusion_env.errors import RunFolderError
from addiffusion_env.evaluation.records import Plan, Record, digest_of, prompt_key, uid_of
from addiffusion_env.evaluation.runner import RECORDS_FOLDER
from addiffusion_env.evaluation.statistics import positive_margin
from addiffusion_env.evaluation.store import RecordStore
from addiffusion_env.files import write_text
from addiffusion_env.samplers import named_traits
from addiffusion_env.samplers.traits import Traits
from addiffusion_env.settings import check_types, present

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
    "lpips",
    "openai",
)
"""Packages that results may depend on; those that are not installed are left out of the manifest."""


@dataclass(frozen=True)
class SamplerEntry:
    """One sampler of an evaluation.

    Attributes:
        name: unique.
        variant: see :func:`addiffusion_env.evaluation.records.variant_of`.
        process: its decision process, as plain values.
        fingerprint: hash of a learned sampler's files; empty for others and in older manifests.
        traits: its properties; ``None`` in older manifests.
    """

    name: str
    variant: str
    process: Mapping[str, Any]
    fingerprint: str = ""
    traits: Traits | None = None

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> SamplerEntry:
        """An entry of ``evaluation.json``; older ones say only whether it needed previews, under ``looks``."""
        kept = {key: value for key, value in plain.items() if key != "looks"}
        if kept.get("traits") is not None:
            return cls(**{**kept, "traits": Traits.read(kept["traits"])})
        traits = named_traits(kept["name"])
        return cls(**{**kept, "traits": replace(traits, needs_preview=plain.get("looks", traits.needs_preview))})


@dataclass(frozen=True)
class MarginEntry:
    """A margin and when it was set.

    Attributes:
        margin: in the primary measure's units.
        set_at: UTC, ISO 8601.
        records_before: number of existing records; above 0 the margin may have been chosen after seeing results.
    """

    margin: float
    set_at: str
    records_before: int


@dataclass(frozen=True)
class Manifest:
    """Manifest of an evaluation.

    Attributes:
        samplers: in order.
        backbone: its name.
        prompt_ids: in order.
        prompts_digest: sha1 of the ids: evaluations with equal digests used the same prompts.
        seeds: shared by all samplers.
        margins: all margins set for this folder, oldest first; the last one applies.
        cost_per_nfe: cost of one NFE, for regret.
        settings: the resolved configuration.
        versions: of the packages that matter.
        scorers: measure -> description of its model and scale.
        identity: identity of the models that generate and judge the images; see :func:`.identity_of`. Empty in older
            manifests.
        prompt_keys: keys of the prompts, in order; see :func:`.prompt_key`. Empty where uids use prompt ids only.
    """

    samplers: tuple[SamplerEntry, ...]
    backbone: str
    prompt_ids: tuple[str, ...]
    prompts_digest: str
    seeds: tuple[int, ...]
    margins: tuple[MarginEntry, ...]
    cost_per_nfe: float
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    scorers: Mapping[str, str] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    prompt_keys: tuple[str, ...] = ()

    @property
    def traits(self) -> dict[str, Traits]:
        """Sampler -> its traits, in order."""
        return {entry.name: entry.traits or named_traits(entry.name) for entry in self.samplers}

    @property
    def keys(self) -> tuple[str, ...]:
        """The prompt keys that uids are computed from, in order."""
        return self.prompt_keys or self.prompt_ids

    def select(self, records: Iterable[Record]) -> list[Record]:
        """The records of this evaluation by sampler, prompt and seed, in order; others in the folder are ignored."""
        found = {record.uid: record for record in records}
        uids = (
            uid_of(sampler.variant, key, seed) for sampler in self.samplers for key in self.keys for seed in self.seeds
        )
        return [found[uid] for uid in uids if uid in found]


def write_manifest(
    out_dir: Path | str,
    plans: Sequence[Plan],
    backbone: str,
    settings: Mapping[str, Any],
    margin: float,
    cost_per_nfe: float,
    scorers: Mapping[str, str] | None = None,
) -> Manifest:
    """Writes ``evaluation.json`` before any image is generated, keeping the existing history of margins.

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
    prompts = {job.prompt.prompt_id: job.prompt for job in jobs}
    prompt_ids = tuple(prompts)
    manifest = Manifest(
        samplers=tuple(
            SamplerEntry(
                plan.sampler.name,
                plan.variant,
                json.loads(json.dumps(asdict(plan.process))),  # tuples become lists, as when read from JSON
                str(getattr(plan.sampler, "fingerprint", "")),
                Traits.of(plan.sampler),
            )
            for plan in plans
        ),
        backbone=backbone,
        prompt_ids=prompt_ids,
        prompts_digest=digest_of(prompt_ids),
        seeds=tuple(dict.fromkeys(job.seed for job in jobs)),
        margins=margins,
        cost_per_nfe=float(cost_per_nfe),
        settings=dict(settings),
        versions=versions(),
        scorers=dict(scorers or {}),
        identity=plans[0].identity,
        prompt_keys=tuple(prompt_key(prompt) for prompt in prompts.values()),
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
        raw = present("manifest entry", json.loads(path.read_text(encoding="utf-8")), note=False)
        manifest = Manifest(
            **{
                **raw,
                "samplers": tuple(SamplerEntry.read(entry) for entry in raw["samplers"]),
                "margins": tuple(MarginEntry(**entry) for entry in raw["margins"]),
                "prompt_ids": tuple(raw["prompt_ids"]),
                "prompt_keys": tuple(raw.get("prompt_keys", ())),
                "seeds": tuple(raw["seeds"]),
            }
        )
        for part in (manifest, *manifest.samplers, *manifest.margins):
            check_types("", part)
        if not manifest.samplers or not manifest.margins:
            raise ValueError("it names no sampler or no margin")
        if manifest.prompt_keys and len(manifest.prompt_keys) != len(manifest.prompt_ids):
            raise ValueError(f"{len(manifest.prompt_keys)} keys for {len(manifest.prompt_ids)} prompts")
        return manifest
    except FileNotFoundError as error:
        raise RunFolderError(
            f"no evaluation in {path.parent}: {MANIFEST_FILE} is missing", "run eval_sb3.py"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}", "delete it and run again: records are kept") from error


def others_in(out_dir: Path | str, plans: Sequence[Plan]) -> str:
    """Describes records of the same samplers with another identity in a folder; empty if there are none.

    Such records are kept and not reported; new records are added. Call it before
    :func:`write_manifest`, which replaces the last evaluation's identity.
    """
    names, variants = {plan.sampler.name for plan in plans}, {plan.variant for plan in plans}
    here = fingerprint.digest_of(plans[0].identity)
    found = [
        record
        for record in RecordStore(Path(out_dir) / RECORDS_FOLDER).read()
        if record.sampler in names and record.variant not in variants and record.identity != here
    ]
    if not found:
        return ""
    unknown = sum(record.identity is None for record in found)
    words = f"{out_dir} also holds {len(found)} records of these samplers by another model, scorer or judge"
    if unknown:
        words += f" ({unknown} of an older version do not record it)"
    with contextlib.suppress(RunFolderError):
        last = read_manifest(out_dir).identity
        if last and last != plans[0].identity:
            words += f"; previous versus current: {difference_words(last, plans[0].identity)}"
    return f"{words}\n  -> they are kept and not reported; delete them to save space"


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
