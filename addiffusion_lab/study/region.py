"""Refinement of a region alone, reported beside trying again: the same process, redoing the phrases' region instead."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.episode import Episode, play
from addiffusion_env.engine.process import REFINE_PRESETS, Action, ProcessConfig
from addiffusion_env.engine.programs import legal_actions
from addiffusion_env.engine.requests import Decide
from addiffusion_env.evaluation.manifest import write_text
from addiffusion_env.prompts.base import Prompt
from addiffusion_env.scorers.look import LookScorers
from addiffusion_env.tabular.recorder import Judge
from addiffusion_lab.study.arms import Arm

REGIONS = ("union", "weakest")
THRESHOLD = 0.0
"""Preference below which a preview's region is redone: where the two modes of preference part."""


def region_arms(
    backbone: Backbone, scorers: LookScorers, judge: Judge, process: ProcessConfig, prompts: Sequence[Prompt], out: Path
) -> list[Arm]:
    """One try, whose phrases' region is redone (at most twice) while the preview is not liked; and one plain try.

    Args:
        backbone: the model.
        scorers: what looks.
        judge: gives the verdicts.
        process: the policy's own, whose refinement is replaced.
        prompts: picture seed 0 each.
        out: folder of the kept figures.
    """
    arms = [_arm("one try", replace(process, refine=REFINE_PRESETS["off"]), backbone, scorers, judge, prompts, out)]
    for name in REGIONS:
        refine = replace(REFINE_PRESETS[name], limit=2)
        arms.append(_arm(f"region: {name}", replace(process, refine=refine), backbone, scorers, judge, prompts, out))
    return arms


def _arm(
    name: str,
    process: ProcessConfig,
    backbone: Backbone,
    scorers: LookScorers,
    judge: Judge,
    prompts: Sequence[Prompt],
    out: Path,
) -> Arm:
    path = out / f"{name.replace(': ', '-').replace(' ', '-')}-{len(prompts)}.json"
    if not path.is_file():
        process = replace(process, check_finished=False)

        def decide(requests: Sequence[Decide]) -> list[int]:
            return [_choice(request, process) for request in requests]

        engine = Engine(backbone, scorers, solver=process.solver, decider=decide)
        programs = (play(backbone, process, prompt, 0) for prompt in prompts)
        episodes: list[Episode] = engine.run(programs, max_lanes=16)
        verdicts = judge([episode.picture.image for episode in episodes], prompts)
        found = {
            "correct": [float(bool(verdict)) for verdict in verdicts],
            "nfe": [float(episode.lane.nfe) for episode in episodes],
            "calls": [float(episode.lane.calls) for episode in episodes],
            "looks": [float(len(episode.lane.actions) - 1) for episode in episodes],
        }
        out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(found))
    kept = {key: np.array(value) for key, value in json.loads(path.read_text(encoding="utf-8")).items()}
    return Arm(name, kept["correct"], kept["nfe"], kept["calls"], kept["looks"], np.ones(len(prompts)), scored=False)


def _choice(request: Decide, process: ProcessConfig) -> int:
    lane = request.lane
    low = lane.look is not None and float(lane.look.preference[0]) < THRESHOLD
    return int(Action.REFINE if low and legal_actions(lane, process)[Action.REFINE] else Action.CONTINUE)
