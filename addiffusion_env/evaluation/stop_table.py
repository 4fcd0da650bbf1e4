"""The stop table: one pass a prompt, landed at every stop, all scores; what the best constant stop and the oracle make.

python -m addiffusion_env.evaluation.stop_table --out runs/stops --prompts 64       (goes on where it was killed)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from addiffusion_env.engine.process import REFINE_PRESETS
from addiffusion_env.envs.loading import load_backbone, load_scorers
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.evaluation.judges import Judges
from addiffusion_env.prompts.base import Prompt
from addiffusion_env.rewards.composite import make_reward
from addiffusion_env.rollouts.recorder import Recorder
from addiffusion_env.rollouts.regret import oracle, worth
from addiffusion_env.rollouts.table import TryTable


@dataclass(frozen=True)
class StopRow:
    """What stopping always at one step gives.

    Attributes:
        stop: ``step 3``: stop there; ``end``: never.
        nfe: mean.
        correct: share, NaN without a judge.
        preference: mean, standard deviations.
        utility: mean of the reward's bonus less the price of what was spent.
        oracle_share: share of prompts for which the oracle stops here.
    """

    stop: str
    nfe: float
    correct: float
    preference: float
    utility: float
    oracle_share: float


@dataclass(frozen=True)
class StopSummary:
    """A stop table in short.

    Attributes:
        rows: one a stop, by rising NFE.
        best_constant: the stop of the highest mean utility.
        oracle_utility: mean utility of each prompt's own best stop, chosen by the reward's scores.
        oracle_nfe: its mean NFE.
        regret: of the best constant stop to the oracle.
    """

    rows: tuple[StopRow, ...]
    best_constant: str
    oracle_utility: float
    oracle_nfe: float
    regret: float


def record_stops(settings: EnvSettings, prompts: Sequence[Prompt], folder: Path, judge: bool = True) -> TryTable:
    """Records one pass of every prompt, landed at every step; resumable, a Parquet shard for 32 prompts.

    Args:
        settings: of the environment; its refinement is left out.
        prompts: picture seed 0 each.
        folder: of the shards.
        judge: whether the emoji detector gives verdicts.
    """
    backbone = load_backbone(settings)
    scorers = load_scorers(backbone, settings.scorers)
    process = replace(
        settings.process(backbone.capabilities, backbone.name),
        refine=REFINE_PRESETS["off"],
        decide_at=None,
        decide_every=1,
        check_finished=False,
    )
    verdicts = Judges.of(["emoji_detector"], backbone.device).verdicts if judge else None
    recorder = Recorder(backbone, scorers, process, 1, verdicts)
    pictures = [(prompt, 0) for prompt in prompts]
    return recorder.record_shards(pictures, folder, note=lambda done: print(f"{done} of {len(pictures)}", flush=True))


def summarise(table: TryTable, settings: EnvSettings, price: float) -> StopSummary:
    """Constant stops and the oracle at a price of one NFE."""
    values = worth(make_reward(settings.reward), table.preference, table.clip_score, table.clip_text)
    best, spent = oracle(table, values, price)
    places = range(table.finish, values.shape[2])
    utility = np.stack([values[:, 0, place] - price * table.nfe[:, 0, place] for place in places])
    chosen = utility.argmax(0)
    rows = [
        StopRow(
            stop=table.kind(place),
            nfe=float(table.nfe[:, 0, place].mean()),
            correct=float(np.nanmean(table.correct[:, 0, place])) if np.isfinite(table.correct).any() else float("nan"),
            preference=float(table.preference[:, 0, place].mean()),
            utility=float(utility[index].mean()),
            oracle_share=float((chosen == index).mean()),
        )
        for index, place in enumerate(places)
    ]
    top = max(rows, key=lambda row: row.utility)
    return StopSummary(
        rows=tuple(sorted(rows, key=lambda row: row.nfe)),
        best_constant=top.stop,
        oracle_utility=float(best.mean()),
        oracle_nfe=float(spent.mean()),
        regret=float(best.mean()) - top.utility,
    )


def main(arguments: Sequence[str] | None = None) -> StopSummary:
    """Records and prints."""
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(prog="python -m addiffusion_env.evaluation.stop_table", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/stops"))
    parser.add_argument("--backbone", default="emoji")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--split", default="train", help="train: nothing of the test prompts is looked at")
    parser.add_argument("--price", type=float, default=0.01)
    options = parser.parse_args(arguments)
    settings = EnvSettings.of(
        backbone=options.backbone, steps=options.steps, refine="off", prompt_options={"split": options.split}
    )
    prompts = settings.prompt_source().take(options.prompts, seed=0)
    table = record_stops(settings, prompts, options.out, judge=options.backbone == "emoji")
    found = summarise(table, settings, options.price)
    shown = Table("stop", "mean NFE", "correct", "preference", f"utility at {options.price:g}", "the oracle's choice")
    for row in found.rows:
        cells = (f"{row.nfe:.2f}", f"{row.correct:.3f}", f"{row.preference:.2f}", f"{row.utility:.3f}")
        shown.add_row(
            row.stop, *cells, f"{row.oracle_share:.0%}", style="bold" if row.stop == found.best_constant else ""
        )
    Console().print(shown)
    print(
        f"oracle: utility {found.oracle_utility:.3f} at {found.oracle_nfe:.2f} NFE; the best constant stop "
        f"({found.best_constant}) leaves {found.regret:.3f} of it"
    )
    return found


if __name__ == "__main__":
    main()
