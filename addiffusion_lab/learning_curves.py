"""Learning curves of training runs as one figure, from their TensorBoard files.

python -m addiffusion_lab.learning_curves runs/dqn runs/recurrent_ppo --out curves.png
python -m addiffusion_lab.learning_curves runs/a runs/b --tags env/refine_fraction env/nfe
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from addiffusion_env.config import friendly
from addiffusion_env.errors import RunFolderError, unknown
from addiffusion_env.evaluation.plots import FONT, GRID, WIDTH, load_pyplot, png_of
from addiffusion_env.evaluation.series import PALETTE

LABELS = {
    "rollout/ep_rew_mean": "return of an episode",
    "env/nfe": "NFE of an image",
    "env/quality": "preference of an image",
    "env/refine_fraction": "share of decisions: refine",
    "env/stop_fraction": "share of decisions: stop",
    "table/nfe": "NFE of an image, greedy",
    "table/preference": "preference of an image, greedy",
    "table/regret_to_oracle": "regret to the oracle, greedy",
    "table/regret_to_constant": "regret to the best constant, greedy",
}
"""Tag -> label of its axis; other tags are their own labels."""

LINES = ("-", "--", ":", "-.")
TAGS = ("rollout/ep_rew_mean", "env/nfe", "env/quality")


def read_curve(run: Path, tag: str) -> tuple[np.ndarray, np.ndarray]:
    """(N,) decisions and (N,) values of a scalar, by decisions; of a resumed run, from all its files.

    A scalar of the live environment is preferred to one of the table, where a run has both.

    Args:
        run: folder of a run.
        tag: of the scalar.

    Raises:
        RunFolderError: when the run has no TensorBoard files.
        UnknownNameError: when it has no such scalar.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, found, known = run / "tensorboard", dict[int, float](), set[str]()
    if not any(folder.rglob("events.*")):
        raise RunFolderError(f"{run} has no TensorBoard files", "name the folder of a run: runs/dqn")
    for stage in (folder, folder / "table"):
        for file in [] if found else sorted(stage.glob("events.*")):
            events = EventAccumulator(str(file), size_guidance={"scalars": 0})
            events.Reload()
            known.update(events.Tags()["scalars"])
            if tag in events.Tags()["scalars"]:
                found.update((event.step, event.value) for event in events.Scalars(tag))
    if not found:
        raise unknown(f"scalar of {run}", tag, known)
    steps = sorted(found)
    return np.array(steps), np.array([found[step] for step in steps])


def draw_curves(runs: Sequence[Path], tags: Sequence[str] = TAGS, names: Sequence[str] = ()) -> bytes:
    """A PNG with one panel a tag, decisions to the right, and one line a run.

    Args:
        runs: folders of runs.
        tags: of TensorBoard's scalars.
        names: of the runs in the legend; the folders' names where there are none.

    Raises:
        RunFolderError: when a run has no TensorBoard files.
        UnknownNameError: when a run has no such scalar.
    """
    pyplot = load_pyplot()
    figure, panels = pyplot.subplots(1, len(tags), figsize=(WIDTH, 2.7), squeeze=False)
    for panel, tag in zip(panels[0], tags, strict=True):
        for place, run in enumerate(runs):
            steps, values = read_curve(run, tag)
            name = names[place] if place < len(names) else run.name
            panel.plot(steps, values, LINES[place % len(LINES)], color=PALETTE[place % len(PALETTE)], label=name)
        panel.set_xlabel("decisions", fontsize=FONT)
        panel.locator_params(axis="x", nbins=4)  # the labels of 100,000 decisions would touch
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.set_title(LABELS.get(tag, tag), fontsize=FONT)
        panel.grid(color=GRID)
    lines, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=len(runs), fontsize=FONT, frameon=False)
    return png_of(pyplot, figure)


@friendly
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m addiffusion_lab.learning_curves", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--tags", nargs="+", default=list(TAGS), help="scalars, one panel each")
    parser.add_argument("--names", nargs="+", default=[], help="of the runs in the legend")
    parser.add_argument("--out", type=Path, default=Path("learning.png"), help="the picture")
    chosen = parser.parse_args(arguments)
    chosen.out.write_bytes(draw_curves(chosen.runs, chosen.tags, chosen.names))
    print(chosen.out)


if __name__ == "__main__":
    main()
