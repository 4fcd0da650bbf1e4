"""Metrics and a VLM judge over the images that an evaluation kept: computed once, cached in a file, reported.

Both are off by default: most metrics need weights that are not in the package, a VLM judge costs money.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from pathlib import Path
from typing import Annotated, Any, ClassVar

from addiffusion_env.errors import ConfigError, RunFolderError, unknown
from addiffusion_env.evaluation.manifest import Manifest, read_manifest, write_text
from addiffusion_env.evaluation.records import digest_of, uid_of
from addiffusion_env.evaluation.runner import RECORDS_FOLDER
from addiffusion_env.evaluation.sections import Section, Table
from addiffusion_env.evaluation.store import RecordStore
from addiffusion_env.evaluation.tables import focus_of
from addiffusion_env.prompts import Prompt
from addiffusion_env.settings import Ge, Settings
from addiffusion_lab.metrics import METRICS
from addiffusion_lab.metrics.images import Images
from addiffusion_lab.metrics.measure import OF_FEATURES, image_metrics
from addiffusion_lab.metrics.settings import MetricResult, MetricSettings
from addiffusion_lab.vlm import make_client
from addiffusion_lab.vlm.costs import Price
from addiffusion_lab.vlm.judge import compare

METRICS_FILE, VLM_FILE, VLM_CACHE = "metrics.json", "vlm.json", "vlm_replies"


@dataclass(frozen=True)
class MetricsConfig(Settings):
    """Metrics of every sampler's images against a reference.

    Attributes:
        names: names in :data:`~addiffusion_lab.metrics.METRICS`.
        reference: a sampler of the evaluation, or a folder of images, which only ``fid`` and ``kid`` can use.
        settings: see :class:`~addiffusion_lab.metrics.settings.MetricSettings`.
    """

    section: ClassVar[str] = "metrics"

    names: Sequence[str]
    reference: str
    settings: MetricSettings = field(default_factory=MetricSettings)

    @classmethod
    def read(cls, given: Mapping[str, Any], samplers: Sequence[str]) -> MetricsConfig:
        """Reads the settings from configuration, before any image is generated.

        Raises:
            ConfigError: for an unknown setting, no metric, or a folder as the reference of pairs.
            UnknownNameError: for an unknown metric.
        """
        made = cls.of({**given, "settings": MetricSettings.of(given.get("settings") or {})})
        names, reference = made.names, made.reference
        for name in names:
            METRICS[name]
        if not names:
            raise ConfigError("metrics are enabled, but none is named", f"metrics.names=[{', '.join(METRICS)}]")
        if reference not in samplers and not Path(reference).is_dir():
            raise unknown("reference sampler (or folder of images)", reference, samplers)
        pairs = [name for name in names if name not in OF_FEATURES]
        if reference not in samplers and pairs:
            raise ConfigError(
                f"{pairs[0]} pairs images by prompt and seed, and {reference} is a folder",
                "name a sampler of this evaluation as metrics.reference",
            )
        return made


@dataclass(frozen=True)
class VlmConfig(Settings):
    """A VLM judge of the policy's images against those of other samplers.

    Attributes:
        judge: ``"service:model"``, see :func:`~addiffusion_lab.vlm.make_client`.
        against: the other samplers.
        max_cost: limit of the total cost in US dollars.
        price: price per million input and output tokens; ``None`` uses the listed one.
        workers: number of concurrent questions.
        client: further options of the client: ``base_url``, ``key_variable``, ``timeout``, ``max_output_tokens``.
    """

    section: ClassVar[str] = "vlm"
    see: ClassVar[str] = "for example vlm={judge: openai:gpt-4o-2024-11-20, against: [fixed:50], max_cost: 5}"

    judge: str
    against: Sequence[str]
    max_cost: Annotated[float, Ge(0)]
    price: Price | None = None
    workers: Annotated[int, Ge(1)] = 4
    client: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any], samplers: Sequence[str]) -> VlmConfig:
        """Reads the settings from configuration, before any image is generated.

        Raises:
            ConfigError: for an unknown setting, or one of ``judge``, ``against``, ``max_cost`` missing.
            UnknownNameError: for a sampler that is not evaluated.
        """
        price = given.get("price")
        made = cls.of({**given, "price": None if price is None else Price(**price)})
        if not made.against:
            raise ConfigError("vlm.against names no sampler to compare with", cls.see)
        for name in made.against:
            if name not in samplers:
                raise unknown("sampler to compare with", name, samplers)
        return made


def measure_metrics(out_dir: Path | str, config: MetricsConfig) -> dict[str, dict[str, MetricResult]]:
    """Metrics of every sampler of a finished evaluation; they are stored in ``metrics.json``.

    Returns:
        Sampler -> metric -> result; without the reference sampler.

    Raises:
        ConfigError: when images were not kept.
        WeightsError, MissingPackageError: when a metric's network cannot be loaded.
    """
    folder = Path(out_dir)
    manifest = read_manifest(folder)
    _, images = _kept(folder, manifest, [entry.name for entry in manifest.samplers])
    reference = Images.of(images.pop(config.reference, config.reference))
    found = {name: image_metrics(own, reference, config.names, config.settings) for name, own in images.items()}
    plain = {name: {key: asdict(value) for key, value in results.items()} for name, results in found.items()}
    kept = {"reference": config.reference, "samplers": plain, "images": _images(manifest)}
    write_text(folder / METRICS_FILE, json.dumps(kept, indent=1))
    return found


def judge_by_vlm(
    out_dir: Path | str, config: VlmConfig, prompts: Sequence[Prompt], say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Has a VLM compare the policy's images with those of other samplers; verdicts are stored in ``vlm.json``.

    Replies are cached in ``vlm_replies``: a repeated call pays only for missing replies.

    Args:
        out_dir: of a finished evaluation that kept its images.
        config: the judge.
        prompts: those of the evaluation.
        say: called with the cost estimate before the first question, and with the results.

    Raises:
        ConfigError: when images were not kept.
        VlmServiceError: when the service refuses or fails; replies so far are cached.
    """
    folder = Path(out_dir)
    manifest = read_manifest(folder)
    focus = focus_of(manifest.traits)
    client = make_client(config.judge, **(config.client or {}))
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    rows, left = [], config.max_cost
    for name in config.against:
        prompt_ids, images = _kept(folder, manifest, [focus, name])
        report = compare(
            images[focus],
            images[name],
            [by_id[prompt_id] for prompt_id in prompt_ids],
            client,
            max_cost=left,
            price=config.price,
            cache=folder / VLM_CACHE,
            workers=config.workers,
            say=say,
        )
        left = max(0.0, left - report.cost)
        say(f"{focus} against {name}, {report}")
        rate = report.win_rate
        rows.append(
            {
                "focus": focus,
                "against": name,
                "judge": report.judge,
                "template": report.template,
                "win_rate": None if rate is None else asdict(rate),
                "won": report.count("a"),
                "tied": report.count("tie"),
                "lost": report.count("b"),
                "disagreements": report.disagreements,
                "first_share": None if isnan(report.position.share) else report.position.share,
                "first_z": report.position.z,
                "parse_failures": report.parse_failures,
                "replies": report.replies,
                "unasked": report.count("unasked"),
                "cost": report.cost,
                "images": {key: _images(manifest)[key] for key in (focus, name)},
            }
        )
        write_text(folder / VLM_FILE, json.dumps(rows, indent=1))
    return rows


def _kept(folder: Path, manifest: Manifest, names: Sequence[str]) -> tuple[list[str], dict[str, list[bytes]]]:
    """The images that all of some samplers have: the prompt ids, and each sampler's PNG files in the same order.

    Images that an evaluation left out because a lane failed are left out here too.
    """
    store = RecordStore(folder / RECORDS_FOLDER)
    recorded = {record.uid for record in store.read()}
    variants = {entry.name: entry.variant for entry in manifest.samplers}
    rows = [
        (prompt_id, {name: uid_of(variants[name], key, seed) for name in names})
        for prompt_id, key in zip(manifest.prompt_ids, manifest.keys, strict=True)
        for seed in manifest.seeds
    ]
    rows = [(prompt_id, uids) for prompt_id, uids in rows if recorded.issuperset(uids.values())]
    wanted = [uid for _, uids in rows for uid in uids.values()]
    found = store.images(wanted)
    if len(found) < len(wanted):
        raise ConfigError(
            f"{len(wanted) - len(found)} of {len(wanted)} images were not kept",
            "choose another out=, or delete the records: they are regenerated, and kept",
        )
    return [prompt_id for prompt_id, _ in rows], {name: [found[uids[name]] for _, uids in rows] for name in names}


def metrics_sections(out_dir: Path | str, manifest: Manifest) -> list[Section]:
    """The metrics of an evaluation's images as a section of the report; empty when none were computed.

    Raises:
        RunFolderError: when their file is damaged.
    """
    found = _read(Path(out_dir) / METRICS_FILE)
    return [_metrics_section(found)] if found and _concerns(found, manifest) else []


def vlm_sections(out_dir: Path | str, manifest: Manifest) -> list[Section]:
    """A VLM judge's verdicts on an evaluation's images, as :func:`metrics_sections`."""
    rows = [row for row in _read(Path(out_dir) / VLM_FILE) or () if _concerns(row, manifest)]
    return [_vlm_section(rows)] if rows else []


def _concerns(found: Mapping[str, Any], manifest: Manifest) -> bool:
    """Whether results belong to an evaluation's images; files of older versions do not record it."""
    images = found.get("images")
    return not manifest.identity if images is None else images.items() <= _images(manifest).items()


def _images(manifest: Manifest) -> dict[str, str]:
    """Sampler -> sha1 over the uids of its images."""
    return {
        sampler.name: digest_of(uid_of(sampler.variant, key, seed) for key in manifest.keys for seed in manifest.seeds)
        for sampler in manifest.samplers
    }


def _read(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path} cannot be read: {error}", "delete it and run again") from error


def _metrics_section(found: Mapping[str, Any]) -> Section:
    rows: list[tuple[str, ...]] = []
    notes: dict[str, Any] = {}
    for sampler, results in found["samplers"].items():
        for result in results.values():
            spread = "" if result["spread"] is None else f" ± {result['spread']:.3g}"
            arrow = "higher" if result["higher_is_better"] else "lower"
            rows.append((sampler, result["name"], f"{result['value']:.4g}{spread}", arrow, str(result["n"])))
            settings = ", ".join(f"{key}={value}" for key, value in result["settings"].items() if key != "identical")
            notes[f"{result['name']}: {result['backend']}; {settings}."] = None
            notes.update(dict.fromkeys(f"{sampler}, {result['name']}: {note}." for note in result["notes"]))
    head = ("sampler", "metric", "value", "better", "images")
    words = f"Against {found['reference']}. They are descriptive and decide no claim; numbers of other backends differ."
    return Section("Metrics", (words, Table(head, tuple(rows)), *notes))


def _vlm_section(rows: Sequence[Mapping[str, Any]]) -> Section:
    table = Table(
        ("against", "win rate", "won / tied / lost", "orders disagree", "first place", "unparsed", "unasked", "$"),
        tuple(
            (
                row["against"],
                "-" if row["win_rate"] is None else "{estimate:.3f} [{low:.3f}, {high:.3f}]".format(**row["win_rate"]),
                f"{row['won']} / {row['tied']} / {row['lost']}",
                str(row["disagreements"]),
                "-" if row["first_share"] is None else f"{row['first_share']:.2f} (z {row['first_z']:+.1f})",
                f"{row['parse_failures']} of {row['replies']}",
                str(row["unasked"]),
                f"{row['cost']:.4f}",
            )
            for row in rows
        ),
    )
    words = (
        f"{rows[0]['focus']} against others, judged by {rows[0]['judge']} (wording {rows[0]['template']}): pairs of "
        "one prompt and seed in both orders; disagreement counts as a tie, ties count half. Intervals of 95 % are "
        "Tango's score intervals."
    )
    return Section("VLM judge", (words, table))
