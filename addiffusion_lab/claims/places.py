"""What a preview, or the denoiser itself, says of an attempt before it is finished: AUC, Brier, reliability, seconds.

python -m addiffusion_lab.claims.places --prompts 256

Attempts of training prompts are recorded under a process with decisions inside the schedule. Whatever is fitted is
fitted without verdicts, on one half of the prompts, to what the shipped calibrator says of the finished images, and
judged on the other half by the detector's verdict on the finished image of the same attempt.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from addiffusion_env import ENVIRONMENTS
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.calibration.held_out import HeldOut
from addiffusion_env.config import friendly
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.envs.settings import EnvSettings, load_backbone
from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.manifest import write_text
from addiffusion_env.evaluation.rendering import to_markdown
from addiffusion_env.evaluation.sections import Section, Table
from addiffusion_env.evaluation.statistics import paired_share_interval
from addiffusion_env.prompts.emoji_grammar import EmojiPrompts
from addiffusion_env.scorers.utility import Utility, calibrator_of
from addiffusion_env.tabular.fit_calibrator import fit_calibrator
from addiffusion_env.tabular.mdp import TabularMDP, Transitions
from addiffusion_env.tabular.rules import RuleOutcomes, play_rule, rules_of, thresholds_of
from addiffusion_env.tabular.table import AttemptTable
from addiffusion_lab.claims.against_rules import record_judged
from addiffusion_lab.claims.calibration import Calibration, agreement, calibration_section, within_prompts
from addiffusion_lab.claims.maps import MappedEmoji, maps_of, seconds_section

PROCESSES: dict[str, dict[str, Any]] = {
    "AdDiffusion-Emoji-v1": ENVIRONMENTS["AdDiffusion-Emoji-v1"],
    "AdDiffusion-Emoji-v2 with a decision at step 3": {
        **ENVIRONMENTS["AdDiffusion-Emoji-v2"],
        "decide_every": 1,
        "decide_at": [3],
    },
}
"""Previews are measured on the first; rules that refuse attempts by them on each."""
SHIPPED = "emoji"
"""The calibrator of finished images."""
OUT = Path("runs/places")


def settings_of(process: Mapping[str, Any]) -> EnvSettings:
    """The environment of a process, with maps in the features."""
    return EnvSettings.of(**{**process, "backbone": MappedEmoji.from_pretrained()})


def halves(table: AttemptTable) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of two halves of the prompts: all images of a prompt are in one of them."""
    number = np.unique(table.prompt_ids, return_inverse=True)[1] % 2
    return np.flatnonzero(number == 0), np.flatnonzero(number == 1)


def crossed_calibrators(table: AttemptTable) -> HeldOut:
    """The shipped calibrator, whose previews were fitted to the other half of the prompts."""
    kept, fold = calibrator_of(SHIPPED), np.zeros(len(table), int)
    one, other = halves(table)
    fold[other] = 1
    return HeldOut(calibrators=[fit_calibrator(table.rows(fitted), kept) for fitted in (other, one)], fold=fold)


def calibrators_section(table: AttemptTable) -> Section:
    """Brier, reliability and AUC of the calibrator of each place, and of the one of finished images at previews."""
    scores = table.preference, table.clip_score, table.clip_text
    said = 1 / (1 + np.exp(-crossed_calibrators(table)(*scores, table.place_steps)))
    verdict = table.correct[:, :, table.finish]
    plain = 1 / (1 + np.exp(-Utility(calibrator=SHIPPED)(*scores)))
    found: list[Calibration] = []
    for place, step in enumerate(table.steps):
        found.append(agreement(f"preview of step {step}, read as a finished image", plain[:, :, place], verdict))
        found.append(agreement(f"preview of step {step}, its own calibrator", said[:, :, place], verdict))
    found.append(agreement("end of the schedule", said[:, :, table.finish], verdict))
    found.append(agreement("early exit before the first evaluation", said[:, :, -1], table.correct[:, :, -1]))
    return replace(calibration_section(found), title="A calibrator for every place")


def sources(table: AttemptTable, place: int) -> dict[str, np.ndarray]:
    """What is read at a place -> (P, T, D) inputs of a regression; all hold the log-odds before the image."""
    calibrator = calibrator_of(SHIPPED)
    before = np.repeat(calibrator.before(table.clip_text)[:, None, None], table.attempts, axis=1)
    preference, clip_score = table.preference[:, :, place], table.clip_score[:, :, place]
    scores = np.stack([preference, clip_score, calibrator(preference, clip_score, table.clip_text)], axis=-1)
    embedding = table.clip_image[:, :, place] * table.clip_text[:, None]
    maps = maps_of(table.features[:, :, place])
    return {
        "the prompt alone": before,
        "preview: scores": np.concatenate([before, scores], -1),
        "preview: scores and CLIP embedding": np.concatenate([before, scores, embedding], -1),
        **{name: np.concatenate([before, values], -1) for name, values in maps.items()},
        "preview: scores, and the middle block in 2x2 cells": np.concatenate(
            [before, scores, maps["middle block, 2x2 cells"]], -1
        ),
    }


def sources_section(table: AttemptTable) -> Section:
    """AUC of each source at each decision, by a ridge regression of what the calibrator says of the finished image."""
    verdict, end = table.correct[:, :, table.finish], table.finish
    says = calibrator_of(SHIPPED)(table.preference[:, :, end], table.clip_score[:, :, end], table.clip_text)
    target = 1 / (1 + np.exp(-says))
    rows = []
    for place, step in enumerate(table.steps):
        for name, inputs in sources(table, place).items():
            said = np.clip(crossed(inputs, target, halves(table)), 0, 1)
            told = agreement(name, said, verdict)
            own = within_prompts(crossed(inputs, target, halves(table), within=True), verdict)
            numbers = (told.auc, told.within, own, told.brier)
            rows.append((str(step), name, str(inputs.shape[-1]), *(f"{value:.3f}" for value in numbers)))
    head = ("step", "read", "numbers", "AUC", "within a prompt", "within, fitted within prompts", "Brier")
    return Section("Previews and the denoiser's maps", (Table(head, tuple(rows)),))


@friendly
def main(arguments: Sequence[str] | None = None) -> None:
    """Records, fits on halves, and writes the sections."""
    parser = argparse.ArgumentParser(prog="python -m addiffusion_lab.claims.places", description=__doc__)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--prompt-seed", type=int, default=777)
    parser.add_argument("--attempts", type=int, default=4)
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    if options.prompts < 16:
        raise ConfigError(f"--prompts must be at least 16, got {options.prompts}", "use 256")
    sections = []
    prompts = EmojiPrompts("train").take(options.prompts, seed=options.prompt_seed)
    for number, (name, process) in enumerate(PROCESSES.items()):
        settings = settings_of(process)
        backbone = load_backbone(settings)
        table = record_judged(
            settings, options.attempts, prompts, "emoji_detector", options.out / "table", options.lanes, features=True
        )
        if number == 0:
            sections = [calibrators_section(table), sources_section(table), seconds_section(options.lanes)]
        found = settings.process(backbone.capabilities, backbone.name)
        told = replace(found, refine=replace(found.refine, limit=options.attempts - 1))
        sections.append(
            refusal_section(table, backbone, told, crossed_calibrators(table), halves(table), f"Early refusal: {name}")
        )
    page = to_markdown("What is known at each place", sections)
    print(page)
    print(f"written: {write_text(options.out / 'places.md', page)}")


if __name__ == "__main__":
    main()


STRENGTHS = tuple(10.0 ** np.arange(-3, 4))
"""Penalties, as multiples of the number of inputs."""
FOLDS = 4


def crossed(
    inputs: np.ndarray, target: np.ndarray, halves: tuple[np.ndarray, np.ndarray], within: bool = False
) -> np.ndarray:
    """(P, T) predictions for each half of the rows by a regression that is fitted to the other.

    Args:
        inputs: (P, T, D) of T attempts of each of P prompts.
        target: (P, T).
        halves: the rows of both halves.
        within: whether inputs and target are taken relative to their mean over the prompt's attempts, so that only
            what distinguishes these is fitted.
    """
    values, wanted = inputs.astype(np.float64), target.astype(np.float64)
    if within:
        values, wanted = values - values.mean(1, keepdims=True), wanted - wanted.mean(1, keepdims=True)
    found = np.zeros(target.shape)
    for fitted, judged in (halves, halves[::-1]):
        seen = values[fitted].reshape(-1, values.shape[-1])
        centre, spread = seen.mean(0), np.maximum(seen.std(0), 1e-9)
        rows = ((values[np.concatenate([fitted, judged])] - centre) / spread).reshape(-1, values.shape[-1])
        group = np.repeat(np.arange(len(fitted)) % FOLDS, values.shape[1])
        count = len(group)
        said = _chosen(rows @ rows.T / values.shape[-1], wanted[fitted].reshape(-1), group)
        found[judged] = said[count:].reshape(len(judged), -1)
    return found


def _chosen(kernel: np.ndarray, target: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Predictions of every row of a kernel whose first rows have a target, at the strength of the least error."""
    count = len(target)
    error = np.zeros(len(STRENGTHS))
    for held in range(FOLDS):
        kept, left = np.flatnonzero(group != held), np.flatnonzero(group == held)
        told = _solved(kernel[np.ix_(kept, kept)], target[kept], kernel[np.ix_(left, kept)], STRENGTHS)
        error += ((told - target[left]) ** 2).sum(1)
    best = STRENGTHS[int(error.argmin())]
    return _solved(kernel[:count, :count], target, kernel[:, :count], (best,))[0]


def _solved(own: np.ndarray, target: np.ndarray, other: np.ndarray, strengths: tuple[float, ...]) -> np.ndarray:
    """(S, N) predictions of the rows ``other`` at each strength."""
    values, vectors = np.linalg.eigh(own)
    mean = target.mean()
    turned = vectors.T @ (target - mean)
    return np.stack([mean + other @ (vectors @ (turned / (values + strength))) for strength in strengths])


BUDGETS = (1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0)
"""Most NFE of an image, in the mean over the prompts that a rule is chosen on."""
THRESHOLDS, QUANTILES = 10, (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
"""Number of thresholds of finished images, and quantiles of the utility of previews below which they are refused."""


def refusal_section(
    table: AttemptTable,
    backbone: Backbone,
    process: ProcessConfig,
    utility: Utility,
    halves: tuple[np.ndarray, np.ndarray],
    title: str,
) -> Section:
    """Rules chosen on one half of the prompts by calibrated probability, and judged on the other by the verdicts.

    Args:
        table: with verdicts.
        backbone: provides the schedule.
        process: of the table.
        utility: of its images and previews.
        halves: row numbers.
        title: of the section.
    """
    mdp = TabularMDP(table, Transitions.of(backbone, process), 1.0, 0.0, table.attempts - 1, utility)
    thresholds = thresholds_of(mdp, THRESHOLDS)
    refused = np.quantile(mdp.utilities[:, :, : table.finish], QUANTILES)
    plain = [play_rule(mdp, rule) for rule in rules_of(mdp, thresholds)]
    looking = [*plain, *(play_rule(mdp, rule) for rule in rules_of(mdp, thresholds, refused) if rule.abandon > -np.inf)]
    rows = []
    for budget in BUDGETS:
        without, having = (_crossed(played, halves, budget) for played in (plain, looking))
        if without is None or having is None:
            continue
        gain = paired_share_interval(having[0], without[0])
        rows.append(
            (
                f"{budget:g}",
                *(f"{correct.mean():.3f} at {nfe.mean():.2f}" for correct, nfe, _ in (without, having)),
                gain.signed,
                f"{having[2].mean():.2f}",
            )
        )
    head = ("budget", "finished images only", "and previews", "gain in share correct", "previews an image")
    return Section(title, (Table(head, tuple(rows)),))


def _crossed(
    played: Sequence[RuleOutcomes], halves: tuple[np.ndarray, np.ndarray], budget: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(P,) verdicts, NFE and previews of the rules that are best on the other half; ``None`` where none is so cheap."""
    found = np.zeros((3, len(played[0].probability)))
    for chosen_on, judged in (halves, halves[::-1]):
        within = [one for one in played if one.outcomes.nfe[chosen_on].mean() <= budget]
        if not within:
            return None
        best = max(within, key=lambda one: one.probability[chosen_on].mean())
        looks = best.outcomes.looks * (best.rule.abandon > -np.inf)  # no other rule reads previews
        found[:, judged] = np.stack([best.outcomes.correct, best.outcomes.nfe, looks])[:, judged]
    return found[0], found[1], found[2]
