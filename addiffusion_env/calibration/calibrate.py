"""``calibrate(pipe)``: records attempts of a pipeline for some minutes and makes a policy of them, without labels."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from addiffusion_env import __version__
from addiffusion_env.agents.learned import load_sampler
from addiffusion_env.agents.policy_file import FRONTIER_OF, PolicyConfig
from addiffusion_env.agents.rule_policy import save_rules
from addiffusion_env.agents.untrained import DECISIONS, SCHEDULE, default_settings, scorers_there
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.identity import described, results_digest
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.calibration.held_out import FOLDS, fit, measured_rules
from addiffusion_env.calibration.report import write_report
from addiffusion_env.envs.settings import EnvSettings, named_backbone
from addiffusion_env.errors import ConfigError, ResumeError, check_settings
from addiffusion_env.evaluation.cost import (
    RECORD_BYTES,
    RunCost,
    Stage,
    UnitCosts,
    Work,
    early_exit_work,
    measure_units,
    recording_work,
    table_bytes,
)
from addiffusion_env.evaluation.frontier import upper_hull
from addiffusion_env.files import write_text
from addiffusion_env.prompts import Prompt, PromptList, PromptSource, TextFilePrompts, stable_hash
from addiffusion_env.samplers.checked_attempts import CheckedAttempts
from addiffusion_env.scorers.image_scores import ImageScorers, NoScorers
from addiffusion_env.tabular.mdp import Transitions
from addiffusion_env.tabular.recorder import Recorder
from addiffusion_env.tabular.rules import MeasuredRule, costs_of
from addiffusion_env.tabular.table import AttemptTable

SEEDS = 8
"""Images of each prompt of a short list, at most."""
FEWEST_IMAGES = 16
"""Fewest images that a calibrator is fitted to."""
EXITS = (0.4, 0.6)
"""Shares of the schedule from which early exits are recorded."""
SHARE_OF_A_TRY = 0.05
"""The default cost per NFE: a further attempt must raise the probability of a correct image by this much."""
REPORT_SHARE = 0.15
"""Share of the minutes that is left for the report."""
PROGRESS_FILE, POLICY_FOLDER, TABLE_FOLDER = "progress.json", "policy", "table"


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration.

    Attributes:
        folder: holds everything; a name of the policy for ``AdaptivePipeline``, ``eval_sb3.py`` and the hub.
        rules: the frontier, by increasing NFE.
        report: path of the page with images side by side.
        prompts: number of images that were recorded, with all their attempts.
        url: of the commit on the hub; empty where it was not pushed.
    """

    folder: Path
    rules: tuple[MeasuredRule, ...]
    report: Path
    prompts: int
    url: str = ""


def calibrate(
    model: Any,
    prompts: Sequence[str | Prompt] | str | Path | PromptSource | None = None,
    minutes: float = 10.0,
    folder: str | Path = "runs/calibration",
    *,
    scorers: ImageScorers | None = None,
    attempts: int = 4,
    lanes: int = 16,
    most_prompts: int = 1024,
    report_images: int = 6,
    push_to_hub: str | None = None,
    progress_bar: bool = True,
    plan: bool = False,
    **process: Any,
) -> Calibration | RunCost:
    """Makes a policy for a pipeline from recorded attempts: early exit, thresholds, frontier. No labels, no training.

    Every prompt is attempted ``attempts`` times, in full and with early exits. A mixture model of the scores
    (:class:`.Calibrator`) says how probably an image is correct, and the rules that are best at some cost per NFE
    (:mod:`.tabular.rules`) are written as a policy, which is used as a trained one:
    ``AdaptivePipeline(pipe, "runs/calibration")(prompts, target_nfe=20)``. Called again after an interruption it goes
    on with what is recorded; called with more minutes, it records more.

    Args:
        model: a diffusers pipeline, a :class:`.Backbone`, or the name of one (``"emoji"``, ``"sd15"``), a folder or a
            hub id of a pipeline.
        prompts: prompts like those to come: a list, a text file with one in each line, or a source; ``None`` takes
            the backbone's own source. Short lists are drawn with up to eight seeds.
        minutes: of recording, with the report.
        folder: for everything that is written.
        scorers: score finished images; ``None`` loads the backbone's own. Without any, the policy is the early exit
            and the guidance interval alone.
        attempts: T, of each prompt; a policy makes at most as many.
        lanes: images in progress at once.
        most_prompts: images that are recorded at most, however much time there is.
        report_images: prompts that the report shows, beside the pipeline itself; they are not recorded.
        push_to_hub: ``"owner/name"`` to upload the policy to; ``None`` for not.
        progress_bar: whether to show one.
        plan: measure and return the cost instead of calibrating.
        **process: other settings of the process than the default ones: ``steps``, ``guidance_interval``, ``decide_at``
            (steps from which attempts may exit early) ..., as in an environment.

    Returns:
        The calibration; with ``plan`` its cost.

    Raises:
        ConfigError: for too little time, too few prompts, or a setting that does not exist.
        CapabilityError: for a pipeline that cannot be driven.
        RunFolderError: when the folder cannot be written.
        WeightsError: when the model is not available, or the hub refuses the policy.
    """
    check_settings("calibrate has", process, SCHEDULE, keywords=True)
    if minutes <= 0 or attempts < 2 or most_prompts < FEWEST_IMAGES:
        raise ConfigError(
            f"minutes must be above 0, attempts at least 2 and most_prompts at least {FEWEST_IMAGES}, got {minutes:g}, "
            f"{attempts} and {most_prompts}",
            "10 minutes, 4 attempts, 1024 prompts",
        )
    run = _Run(_backbone(model), Path(folder), scorers, attempts, lanes, process)
    shown, recorded = run.images(prompts, most_prompts, report_images)
    if plan:
        return run.cost(recorded, minutes * 60, len(shown))
    table = None if run.blind else run.record(recorded, minutes * 60, progress_bar)
    rules = run.save(table, minutes)
    report = write_report(run.folder, run.backbone, run.scorers, shown, lanes, progress_bar)
    url = "" if push_to_hub is None else load_sampler(run.folder).push_to_hub(push_to_hub)
    return Calibration(run.folder, tuple(rules), report, 0 if table is None else len(table), url)


class _Run:
    """A calibration in progress; its arguments are those of :func:`calibrate`.

    Attributes:
        blind: whether there are no scorers.
        environment: the settings of the policy's environment.
        process: its process.
    """

    def __init__(
        self,
        backbone: Backbone,
        folder: Path,
        scorers: ImageScorers | None,
        attempts: int,
        lanes: int,
        changes: Mapping[str, Any],
    ) -> None:
        self.backbone, self.folder, self.attempts, self.lanes = backbone, folder, attempts, lanes
        self.scorers = scorers or scorers_there(backbone)
        self.blind = isinstance(self.scorers, NoScorers)
        self.environment = self._environment(changes)
        self.process = EnvSettings.of(**self.environment).process(backbone.capabilities, backbone.name)

    def _environment(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The settings by which ``eval_sb3.py`` and ``AdaptivePipeline`` make the same process again."""
        chosen = {**default_settings(self.backbone), **changes}
        # Fewer where an image-to-image pipeline begins in the middle of its schedule.
        steps = min(int(chosen["steps"]), len(self.backbone.sigmas(int(chosen["steps"]), chosen["spacing"])) - 1)
        if not set(DECISIONS) & set(chosen):
            exits = (CheckedAttempts().exit_at,) if self.blind else EXITS
            chosen["decide_at"] = sorted({max(1, round(share * steps)) for share in exits})
        inside = [step for step in chosen.pop("decide_at", None) or () if step < steps]
        chosen["decide_every"] = 1 if inside else steps
        chosen["decide_at"] = inside or None
        if self.blind and not inside:
            raise ConfigError(
                f"no scorer was there, and a schedule of {steps} steps has no place to exit early",
                "pass scorers=, or calibrate a pipeline with more steps",
            )
        # Every attempt begins with a decision before its first evaluation, and may be an early exit from there.
        refine = {"preset": "resample_keep_best", "return_to": 0, "limit": self.attempts - 1}
        checked = {"check_finished": True, "refine": refine} if not self.blind else {"refine": "off"}
        named: dict[str, Any] = {"backbone": self.backbone.name}
        pipe = getattr(self.backbone, "pipe", None)
        if pipe is not None:
            if path := str(pipe.config.get("_name_or_path") or ""):
                named["name_or_path"] = path
            given = {key: value for key, value in self.backbone.arguments.given.items() if _is_plain(value)}  # type: ignore[attr-defined]
            if given and self.backbone.name == "diffusers":
                named["pipeline_kwargs"] = given
        return {**named, **chosen, **checked}

    def images(self, prompts: Any, most: int, report: int) -> tuple[list[Prompt], list[tuple[Prompt, int]]]:
        """At most ``report`` prompts, shown with seed 0, and ``most`` other (prompt, seed) pairs, which are recorded.

        Every prompt is recorded once before any is repeated.
        """
        found = _source(prompts, self.backbone).take(most + report, seed=0)
        if prompts is not None:  # the order of a list may be that of its kinds
            found = sorted(found, key=lambda prompt: stable_hash("calibrate", prompt.prompt_id))
        if len(found) < FOLDS and not self.blind:
            raise ConfigError(
                f"a calibrator needs {FOLDS} different prompts, got {len(found)}", "give more, like those to come"
            )
        pairs = [(prompt, seed) for seed in range(SEEDS) for prompt in found]
        shown = min(report, len(found))
        return found[:shown], pairs[shown:][:most]

    def units(self, images: Sequence[tuple[Prompt, int]]) -> UnitCosts:
        """What this machine needs for the units of work."""
        prompts = [prompt for prompt, _ in images[: self.lanes]]
        return measure_units(self.backbone, self.scorers, self.process, prompts, self.lanes)

    def cost(self, images: Sequence[tuple[Prompt, int]], budget: float, report_images: int) -> RunCost:
        """The cost of as many images as fit into ``budget`` seconds."""
        units = self.units(images)
        one, count = recording_work(self.backbone, self.process, self.attempts), 0
        if not self.blind:
            pace = units.seconds(one)
            self.check_budget(budget, pace)
            count = min(len(images), max(FEWEST_IMAGES, int((1 - REPORT_SHARE) * budget / pace)))
        width = self.scorers.clip_dim + self.scorers.dino_dim + 6
        base = EnvSettings(refine="off").process(self.backbone.capabilities, self.backbone.name)
        pair = Work.attempt(self.backbone, base, looks=False) + Work.attempt(self.backbone, self.process, looks=False)
        height, across = self.backbone.capabilities.image_size
        disk = count * table_bytes(self.process, self.attempts, width)
        stages = [
            Stage.known("record", one.times(count), disk=disk),
            Stage.known("fit", Work(), more=0.02 * count),
            Stage.known(
                "report", pair.times(report_images), disk=2 * report_images * (RECORD_BYTES + height * across * 2)
            ),
        ]
        return RunCost(tuple(stages), units, count)

    def record(self, images: Sequence[tuple[Prompt, int]], budget: float, progress_bar: bool) -> AttemptTable:
        """Records shard by shard until the budget, in seconds, is spent; existing shards are read."""
        recorder, shard = Recorder(self.backbone, self.scorers, self.process, self.attempts), self.lanes
        shards = recorder.shards(images, self.folder / TABLE_FOLDER, shard)
        # The name of a shard says what it holds: others than these prompts, or another process, begin anew.
        progress = Progress(self.folder / PROGRESS_FILE, shards[0][1].stem)
        limit = (1 - REPORT_SHARE) * budget
        pace = progress.pace
        if pace is None:
            begun = time.monotonic()
            pace = self.units(images).seconds(recording_work(self.backbone, self.process, self.attempts))
            progress.spent += time.monotonic() - begun
        self.check_budget(budget, pace)
        parts: list[AttemptTable] = []
        with tqdm(desc="attempts", unit="prompt", disable=None if progress_bar else True) as bar:
            for first, (chunk, path) in zip(range(0, len(images), shard), shards, strict=True):
                new = not path.is_file()
                if new and first >= FEWEST_IMAGES and progress.spent + pace * shard > limit:
                    break
                bar.total = min(len(images), first + shard * max(1, round((limit - progress.spent) / (pace * shard))))
                begun = time.monotonic()
                parts.append(recorder.shard(chunk, path, self.lanes))
                if new:
                    progress.add(len(chunk), time.monotonic() - begun)
                    pace = progress.pace or pace
                bar.update(len(chunk))
            bar.total = bar.n
        return AttemptTable.join(parts)

    def check_budget(self, budget: float, pace: float) -> None:
        """Refuses a budget, in seconds, that records too few images at ``pace`` seconds each."""
        limit = (1 - REPORT_SHARE) * budget
        if pace * FEWEST_IMAGES > 2 * limit:
            raise ConfigError(
                f"{budget / 60:g} minutes record about {limit / pace:.0f} images here, and a calibrator needs "
                f"{FEWEST_IMAGES}",
                f"minutes={max(1, round(1.3 * pace * FEWEST_IMAGES / 60))}, fewer steps, or attempts=2",
            )

    def save(self, table: AttemptTable | None, minutes: float) -> list[MeasuredRule]:
        """Fits, chooses and writes the policy."""
        levels = self.backbone.sigmas(self.process.steps, self.process.spacing)
        full = self.process.nfe_of(levels[:-1])
        if table is None:
            step = self.environment["decide_at"][0]
            nfe = self.process.nfe_of(levels[:step]) + early_exit_work(self.backbone, self.process, levels[step:]).nfe
            rules, costs, calibrator = [MeasuredRule(early=1, exit_step=step, nfe=nfe)], [0.0], None
            about = "no prompt: no scorer was there"
        else:
            measured = measured_rules(table, Transitions.of(self.backbone, self.process))
            rules = best_at_some_cost([one.measured() for one in measured])
            costs, calibrator = costs_of(rules), fit(table)
            about = f"{len(table)} recorded images, judged by calibrators that were fitted to other prompts"
        made = {"kind": "calibrated rule" if calibrator else "early exit", "prompts": len(table) if table else 0}
        varies = len(rules) > 1
        config = PolicyConfig(
            environment={**self.environment, **({"cost_per_nfe": [0.0, costs[0]]} if varies else {})},
            observation={"cost_per_nfe": (0.0, 1)} if varies else {},
            net_arch={},
            rules=[rule.entry() for rule in rules],
            highest_cost_per_nfe=costs[0],
            default_cost_per_nfe=min(SHARE_OF_A_TRY / full, costs[0]),
            frontier=tuple((cost, rule.nfe) for cost, rule in zip(costs, rules, strict=True))[::-1] if varies else (),
            frontier_prompts=about,
            provenance={**made, "attempts": self.attempts, "minutes": minutes, "version": __version__},
            identity={
                name: results_digest(described(part))
                for name, part in zip(FRONTIER_OF, (self.backbone, self.scorers), strict=True)
            },
        )
        save_rules(self.folder / POLICY_FOLDER, config, calibrator)
        return rules


def best_at_some_cost(rules: Sequence[MeasuredRule]) -> list[MeasuredRule]:
    """Those that are best at some cost per NFE (:func:`.best_rule`), by increasing NFE."""
    spent, reached = (np.array([getattr(rule, name) for rule in rules]) for name in ("nfe", "mean_probability"))
    return [rules[at] for at in upper_hull(spent, reached)]


def _backbone(model: Any) -> Backbone:
    if isinstance(model, Backbone):
        return model
    if isinstance(model, str | Path):
        return named_backbone(model)
    return PipelineBackbone(model)


def _source(prompts: Any, backbone: Backbone) -> PromptSource:
    if prompts is None:
        return EnvSettings(backbone=backbone).prompt_source()
    if isinstance(prompts, str | Path):
        return TextFilePrompts(prompts)
    return prompts if isinstance(prompts, PromptSource) else PromptList(prompts)


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


class Progress:
    """What a calibration has recorded and spent, in a file.

    Args:
        path: of the file.
        fingerprint: of what is recorded; another one begins anew.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.images, self.spent, self.recording = 0, 0.0, 0.0
        try:
            held: Any = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"fingerprint": None}
            if held["fingerprint"] == fingerprint:
                self.images = int(held["images"])
                self.spent, self.recording = float(held["seconds"]), float(held["recording"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResumeError(f"{path} cannot be read: {error}", "delete it: recorded attempts are kept") from error

    @property
    def pace(self) -> float | None:
        """Seconds an image; ``None`` before the first shard."""
        return self.recording / self.images if self.images else None

    def add(self, images: int, seconds: float) -> None:
        """Notes a recorded shard."""
        self.images, self.spent, self.recording = self.images + images, self.spent + seconds, self.recording + seconds
        spent = {"images": self.images, "seconds": self.spent, "recording": self.recording}
        write_text(self.path, json.dumps({"fingerprint": self.fingerprint, **spent}))
