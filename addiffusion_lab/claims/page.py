"""Writes the page of results from finished evaluations, without generating images.

python eval_sb3.py experiment=study                         about three hours on two cores
python -m addiffusion_lab.claims.page runs/hypotheses       docs/results.md and its figures
python -m addiffusion_lab.claims.page runs/hypotheses runs/seed1/hypotheses   with the claims of further training seeds
python -m addiffusion_lab.claims.page runs/hypotheses --runs runs/emoji_full   with claims.against_rules
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from addiffusion_env.agents.policy_file import PolicyConfig, find_policy, load_config
from addiffusion_env.backbones import traits_of
from addiffusion_env.config import friendly
from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.manifest import Manifest, read_manifest, write_text
from addiffusion_env.evaluation.plots import figures, save_figures
from addiffusion_env.evaluation.records import Record
from addiffusion_env.evaluation.rendering import PLOTS_FOLDER, to_markdown
from addiffusion_env.evaluation.runner import RECORDS_FOLDER
from addiffusion_env.evaluation.sections import Section, Table, sections
from addiffusion_env.evaluation.store import RecordStore
from addiffusion_env.evaluation.summary import Summary, summarise
from addiffusion_env.tabular.fit_calibrator import read_tables
from addiffusion_lab.claims.against_rules import OUT, learning_sections
from addiffusion_lab.claims.base import Verdict
from addiffusion_lab.claims.detector import DetectorAccuracy, detector_accuracy, detector_section
from addiffusion_lab.claims.render import HEAD, hypotheses_section, verdict_table
from addiffusion_lab.claims.setup import deciding, judge_evaluation

TITLES = {"emoji": "Results on the emoji world"}
"""Backbone -> title of its page; others are titled by their name."""
LESSONS = Path(__file__).parent / "lessons.md"


def write_page(
    folders: Sequence[Path], out: Path, detector: Sequence[DetectorAccuracy] = (), learning: Sequence[Section] = ()
) -> Path:
    """Writes ``results.md``, ``plots`` and ``results.json`` (used by model cards) to a folder.

    Args:
        folders: folders of evaluations with claims; the page shows the first one, and only verdicts of the others.
        out: the output folder.
        detector: the judge's accuracy.
        learning: sections of :mod:`.against_rules`.

    Raises:
        ConfigError: for an evaluation without claims.
        RunFolderError: for a folder without an evaluation.
    """
    manifest, records, verdicts = judged(folders[0])
    summary = summarise(records, manifest)
    drawn = figures(records, summary, [])
    report = sections(records, summary, manifest, [], drawn)
    written = [Section("How this page was created", tuple(provenance(manifest))), hypotheses_section(verdicts)]
    if len(folders) > 1:
        rows = [
            (folder.parent.name, *row) for folder in folders for row in verdict_table(deciding(judged(folder)[2])).rows
        ]
        written.append(Section("All training seeds", (Table(("run", *HEAD), tuple(rows)),)))
    written += learning
    if detector:
        written.append(detector_section(detector))
    written += [section for section in report if any(not isinstance(part, str) for part in section.parts)]
    save_figures(drawn, out / PLOTS_FOLDER)
    write_text(out / "results.json", json.dumps(card_results(summary, manifest), indent=1))
    title = TITLES.get(manifest.backbone, f"Results with {manifest.backbone}")
    lessons = "\n" + LESSONS.read_text(encoding="utf-8") if traits_of(manifest.backbone).embedded else ""
    return write_text(out / "results.md", to_markdown(title, written) + lessons)


def judged(folder: Path) -> tuple[Manifest, list[Record], tuple[Verdict, ...]]:
    """An evaluation with its verdicts.

    Raises:
        ConfigError: when it was run without claims.
        RunFolderError: when there is none.
    """
    manifest = manifest_with_claims(folder)
    records = manifest.select(RecordStore(folder / RECORDS_FOLDER).read())
    return manifest, records, judge_evaluation(records, manifest, manifest.settings["hypotheses"])


def manifest_with_claims(folder: Path) -> Manifest:
    """The manifest of an evaluation that judges claims; raises as :func:`judged`."""
    manifest = read_manifest(folder)
    if manifest.settings.get("hypotheses") is None:
        raise ConfigError(f"the evaluation in {folder} judges no claims", "run eval_sb3.py experiment=study")
    return manifest


def provenance(manifest: Manifest) -> list[str]:
    """Prompts, judge, machine, versions and how the cost per NFE of each claim was chosen, in sentences."""
    settings, versions = manifest.settings, manifest.versions
    packages = ", ".join(
        f"{name} {versions[name]}" for name in ("addiffusion-env", "torch", "diffusers") if name in versions
    )
    lines = [
        f"Drawn by eval_sb3.py and written by python -m addiffusion_lab.claims.page: {packages}; "
        f"{versions.get('machine', 'an unknown machine')}.",
        f"{len(manifest.prompt_ids)} prompts of {settings.get('benchmark') or settings.get('prompt_source')} "
        f"(prompt_seed {settings.get('prompt_seed')}), seeds {list(manifest.seeds)}; held-out judges: "
        f"{', '.join(settings.get('judges') or ['none'])}.",
    ]
    rules = [cost_per_nfe for cost_per_nfe in settings.get("costs_per_nfe") or () if isinstance(cost_per_nfe, str)]
    if rules:
        config = _policy(str(settings["policy"]))
        measured = config.frontier_prompts if config is not None else "training prompts"
        lines.append(
            f"The deciding cost per NFE was fixed before any image was generated: the one at which the policy's "
            f"frontier on {measured} spends {rules[0].removesuffix('nfe')} NFE."
        )
    return lines


def card_results(summary: Summary, manifest: Manifest) -> dict[str, Any]:
    """Results for the model card, as read by :func:`.read_results`: the policy at each cost per NFE."""
    traits = manifest.traits
    stem = traits[summary.focus].curve
    rows = [
        row for row in summary.samplers if row.sampler == summary.focus or (stem and traits[row.sampler].curve == stem)
    ]
    return {
        "about": f"{len(manifest.prompt_ids)} prompts of {manifest.settings.get('prompt_source')}, seeds "
        f"{list(manifest.seeds)}, judged by {', '.join(manifest.settings.get('judges') or ['none'])}. Seconds are wall "
        "clock.",
        "command": f"python eval_sb3.py experiment={'study' if manifest.backbone in TITLES else 'claims'}",
        "rows": [
            {
                "sampler": f"policy@{row.sampler.rpartition('@')[2]}",
                "correct": None if row.correct is None else _rounded(row.correct, 3),
                "nfe": _rounded(row.nfe, 2),
                "seconds": _rounded(row.seconds, 3),
            }
            for row in rows
        ],
    }


def _rounded(interval: Any, digits: int) -> dict[str, float]:
    return {name: round(getattr(interval, name), digits) for name in ("estimate", "low", "high")}


def _policy(run: str) -> PolicyConfig | None:
    folder = find_policy(run)
    return None if folder is None else load_config(folder)


@friendly
def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and writes the page."""
    parser = argparse.ArgumentParser(prog="python -m addiffusion_lab.claims.page", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of evaluations with claims, the page's first")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--runs", type=Path, nargs="*", default=(), help="training runs to compare with rules")
    parser.add_argument(
        "--attempts", type=Path, default=OUT, help="folder in which against_rules recorded test prompts"
    )
    parser.add_argument(
        "--scenes", type=int, default=1024, help="scenes to measure the detector's accuracy on; 0: none"
    )
    options = parser.parse_args(arguments)
    for folder in options.folders:
        manifest_with_claims(folder)  # before minutes of measuring the detector
    found = detector_accuracy(options.scenes) if options.scenes else ()
    learning = learning_sections(options.runs, read_tables(options.attempts / "table")) if options.runs else ()
    print(f"written: {write_page(options.folders, options.out, found, learning)}")


if __name__ == "__main__":
    main()
