"""The page of a calibration: its frontier, how to use it, and images side by side with those of the pipeline itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from addiffusion_env.agents.learned import load_sampler
from addiffusion_env.agents.rule_policy import RulePolicy
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.evaluation.manifest import write_text
from addiffusion_env.evaluation.records import Record
from addiffusion_env.evaluation.rendering import to_html
from addiffusion_env.evaluation.runner import RECORDS_FOLDER, EvaluationContext, carry_out, plan
from addiffusion_env.evaluation.samples import SHOWN, thumbnail
from addiffusion_env.evaluation.sections import Figure, Section, Table, cut
from addiffusion_env.evaluation.store import RecordStore
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.base import Sampler
from addiffusion_env.samplers.checked_attempts import Rule
from addiffusion_env.samplers.fixed import AlwaysContinue
from addiffusion_env.scorers.image_scores import ImageScorers

IMAGES_FOLDER, PAGE = "images", "report.html"


def write_report(
    folder: Path, backbone: Backbone, scorers: ImageScorers, prompts: Sequence[Prompt], lanes: int, progress_bar: bool
) -> Path:
    """Generates the images that are missing and writes ``report.html``; the same images give the same page.

    Args:
        folder: of the calibration; holds its policy.
        backbone: the model.
        scorers: those of the calibration.
        prompts: one image of each by the pipeline itself and by the policy.
        lanes: images in progress at once.
        progress_bar: whether to show one.

    Raises:
        RunFolderError: when the folder cannot be written.
    """
    policy = load_sampler(folder)
    assert isinstance(policy, RulePolicy)
    policy.name = f"policy:{folder.name}@{policy.cost_per_nfe:.3g}"
    samplers: list[Sampler] = [AlwaysContinue(), policy]
    base = EnvSettings(refine="off").process(backbone.capabilities, backbone.name)
    records: list[Record] = []
    context = EvaluationContext(backbone, scorers, base)
    if prompts:
        with tqdm(desc="report", total=2 * len(prompts), unit="image", disable=None if progress_bar else True) as bar:
            records = carry_out(
                plan(samplers, prompts, [0], context),
                context,
                folder / IMAGES_FOLDER,
                max_lanes=lanes,
                shard_size=max(1, lanes),
                keep_images=True,
                on_records=lambda made: bar.update(len(made)),
            )
    kept = RecordStore(folder / IMAGES_FOLDER / RECORDS_FOLDER).images(record.uid for record in records)
    drawn: dict[str, bytes] = {}
    side_by_side = _images(records, kept, prompts, [sampler.name for sampler in samplers], drawn)
    written = [_summary(policy, folder), _frontier(policy), *side_by_side]
    return write_text(folder / PAGE, to_html(f"Calibration of {backbone.name}", written, drawn))


def _summary(policy: RulePolicy, folder: Path) -> Section:
    process, made = policy.config.environment, policy.config.provenance
    interval = process.get("guidance_interval")
    guidance = (
        "Guidance is on at every noise level: limiting it saves nothing here, or changes more than the guidance."
        if interval is None
        else f"Guidance is on between the noise levels {interval[0]:g} and {interval[1]:g}; other steps cost half."
    )
    if not policy.learned:
        words = (
            "No scorer was there, so no image is checked: the policy exits early, and nothing about it was measured."
        )
    else:
        words = (
            f"{made['prompts']} images were attempted {made['attempts']} times each. The probability that an image is "
            "correct is that of a mixture model of its scores, fitted without labels: compare the images below before "
            "you trust it."
        )
    use = f'AdaptivePipeline(pipe, policy="{folder}")(prompts, target_nfe=...)'
    test = f"python eval_sb3.py policy={folder} measures it on other prompts, with a judge that it never saw."
    return Section("What was done", (words, guidance, f"To use it: {use}. {test}"))


def _frontier(policy: RulePolicy) -> Section:
    head = ("cost per NFE", "mean NFE", "calibrated probability", "early exit", "attempts", "accepted from")
    costs = [cost for cost, _ in sorted(policy.config.frontier, reverse=True)] or [policy.cost_per_nfe]
    rows = tuple(
        (
            f"{cost:.3g}",
            f"{rule.nfe:.2f}",
            "-" if rule.probability is None else f"{rule.probability:.3f}",
            _exit_words(rule),
            f"at most {rule.attempts}" if rule.attempts > 1 else "1",
            _threshold_words(rule),
        )
        for cost, rule in zip(costs, policy.rules, strict=True)
    )
    words = (
        f"Measured on {policy.config.frontier_prompts}. The rules were chosen by these same numbers, which are "
        "a little too good: with few images, by up to a few hundredths. The highlighted rule is used when neither "
        "cost_per_nfe nor target_nfe is given."
    )
    return Section("Frontier", (words, Table(head, rows, policy.rules.index(policy.rule))))


def _exit_words(rule: Rule) -> str:
    if not rule.early:
        return "never"
    where = f"after step {rule.exit_step}" if rule.exit_step else "before the first step"
    if rule.early >= rule.attempts:
        return where
    return f"first {'attempt' if rule.early == 1 else f'{rule.early} attempts'}, {where}"


def _threshold_words(rule: Rule) -> str:
    if rule.attempts == 1:
        return "-"
    return "the best of all" if rule.threshold == np.inf else f"{1 / (1 + np.exp(-rule.threshold)):.3g}"


def _images(
    records: Sequence[Record],
    kept: dict[str, bytes],
    prompts: Sequence[Prompt],
    names: Sequence[str],
    drawn: dict[str, bytes],
) -> list[Section]:
    """The section of images, if there are any; their thumbnails are added to ``drawn``."""
    found = {(record.sampler, record.prompt_id): record for record in records if record.uid in kept}
    rows = []
    for row, prompt in enumerate(prompts):
        cells: list[str | Figure] = [cut(prompt.text)]
        for column, name in enumerate(names):
            record = found.get((name, prompt.prompt_id))
            if record is None:
                cells.append("-")
                continue
            suffix, small = thumbnail(kept[record.uid])
            stem = f"image_{row:02d}_{column}{suffix}"
            drawn[stem] = small
            again = f", {record.refinements + 1} attempts" if record.refinements else ""
            cells.append(Figure(stem, f"{record.nfe:g} NFE, {record.seconds:.2g} s{again}", SHOWN))
        rows.append(tuple(cells))
    if not rows:
        return []
    words = "The pipeline itself and the policy, from the same seed; these images were not recorded."
    return [Section("Side by side", (words, Table(("prompt", "the pipeline", "the policy"), tuple(rows))))]
