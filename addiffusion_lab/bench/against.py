"""Another checkout of the project, measured in turn with this one: ``python -m addiffusion_env bench --against PATH``.

Each checkout runs its own code in a process of its own. The two alternate round by round, with the order reversed every
time, so that load on the machine slows both; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.statistics import t_interval
from addiffusion_env.pages import markdown_table
from addiffusion_lab.bench.measure import setting

HERE = Path(__file__).resolve().parents[2]
NEEDED = Path("addiffusion_lab", "bench", "measure.py")
LEVEL = 0.95


@dataclass(frozen=True)
class Comparison:
    """An arm at one number of lanes in both checkouts.

    Attributes:
        arm: name of the arm.
        lanes: images at once.
        ms: milliseconds per lane-step in this checkout, median over rounds.
        ms_there: the same in the other one.
        speedup: how many times as fast this one is: geometric mean over rounds.
        low: lower bound of its 95 % interval (Student's, of the logarithm).
        high: upper bound.
        peak: peak memory in MiB of this one; ``None`` if the system does not report it.
        peak_there: the same of the other one.
        rounds: number of timed rounds.
    """

    arm: str
    lanes: int
    ms: float
    ms_there: float
    speedup: float
    low: float
    high: float
    peak: float | None
    peak_there: float | None
    rounds: int


class Worker:
    """A process of its own in another folder, which answers requests, a line of JSON each.

    Args:
        source: code of the process; modules are imported from the folder first, before an installed copy.
        folder: its working directory.
        *arguments: of its command line.

    Raises:
        ConfigError: when the process ended.
    """

    def __init__(self, source: str, folder: Path, *arguments: str) -> None:
        self.path = folder
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        # With -c the working directory comes first on sys.path.
        command = [sys.executable, "-c", source, *arguments]
        self._process = subprocess.Popen(command, cwd=folder, text=True, encoding="utf-8", **pipes)  # type: ignore[call-overload]
        self.greeting = self._answer()

    def ask(self, request: Any) -> Any:
        """Sends a request and returns the answer."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise ConfigError(f"the process of {self.path} ended with an error", "see its messages above")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


class Checkout(Worker):
    """A process that measures the arms of one checkout.

    Args:
        path: its folder.
        settings: see :mod:`addiffusion_lab.bench.worker`.

    Raises:
        ConfigError: for a folder without the project, or a process that ended.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        if not (path / NEEDED).is_file():
            raise ConfigError(
                f"--against={path} is no checkout of this project: it has no {NEEDED}", "git clone it, then check out"
            )
        source = Path(__file__).with_name("worker.py").read_text(encoding="utf-8")
        super().__init__(source, path.resolve(), json.dumps(settings))
        if Path(self.greeting) != self.path:
            self.close()
            raise ConfigError(
                f"{path} was to be measured, and {self.greeting} was imported", "remove it from PYTHONPATH"
            )


def compare(chosen: argparse.Namespace, samplers: Sequence[str], load: Mapping[str, Any]) -> list[Comparison]:
    """Measures this checkout and ``chosen.against`` in turn; the arguments are those of the command line.

    Raises:
        ConfigError: see :class:`Checkout`; for fewer than two rounds, which give no interval.
    """
    if chosen.rounds < 2:
        raise ConfigError(f"--rounds={chosen.rounds} with --against gives no interval", "use 5")
    names = ("backbone", "steps", "preview_every", "images", "arms", "clock")
    settings = {
        **{name: getattr(chosen, name) for name in names},
        "samplers": list(samplers),
        "load": dict(load),
        "threads": torch.get_num_threads(),
        "instant": str(Path(__file__).with_name("instant.py")) if chosen.instant else "",
    }
    found: list[Comparison] = []
    pair: list[Checkout] = []
    try:
        for path in (HERE, chosen.against):
            pair.append(Checkout(path, settings))
        for lanes in chosen.lanes:
            arms, there = (checkout.ask({"lanes": lanes}) for checkout in pair)
            if arms != there:
                raise ConfigError(f"the checkouts have other arms: {arms} and {there}", "choose --arms that both have")
            found += [_compared(pair, at, name, lanes, chosen.rounds) for at, name in enumerate(arms)]
    finally:
        for checkout in pair:
            checkout.close()
    return found


def _compared(pair: Sequence[Checkout], arm: int, name: str, lanes: int, rounds: int) -> Comparison:
    """One arm: a round to warm up, then ``rounds`` rounds of each checkout in turn."""
    timed: list[dict[int, dict[str, Any]]] = []
    for seed in range(rounds + 1):
        order = (0, 1) if seed % 2 else (1, 0)
        timed.append({side: pair[side].ask({"arm": arm, "seed": 1000 * lanes + seed}) for side in order})
    ms = np.array([[1000 * one[side]["seconds"] / one[side]["lane_steps"] for side in (0, 1)] for one in timed[1:]])
    gain = t_interval(np.log(ms[:, 1] / ms[:, 0]), LEVEL)
    peaks = [[one[side]["peak"] for one in timed] for side in (0, 1)]
    peak, peak_there = (None if None in found else max(found) for found in peaks)
    speedup, low, high = (float(np.exp(value)) for value in (gain.estimate, gain.low, gain.high))
    here, there = (float(value) for value in np.median(ms, axis=0))
    return Comparison(name, lanes, here, there, speedup, low, high, peak, peak_there, rounds)


def run(chosen: argparse.Namespace, samplers: Sequence[str], load: Mapping[str, Any]) -> None:
    """Compares, prints the table and writes the JSON."""
    found = compare(chosen, samplers, load)
    where = setting(torch.device("cpu"), chosen.clock, chosen.load)
    print(f"{HERE} against {chosen.against}, {', '.join(f'{key} {value}' for key, value in where.items())}")
    print(table(found))
    if chosen.json is not None:
        content = {**where, "against": str(chosen.against), "rows": [asdict(one) for one in found]}
        chosen.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def table(found: Sequence[Comparison]) -> str:
    """The comparisons as a Markdown table."""
    head = ("arm", "lanes", "ms per lane-step", "there", "times as fast", "95 % interval", "peak MiB", "there")
    return markdown_table(head, map(_row, found))


def _row(one: Comparison) -> tuple[str, ...]:
    peaks = ("-" if peak is None else f"{peak:.0f}" for peak in (one.peak, one.peak_there))
    interval = f"[{one.low:.2f}, {one.high:.2f}]"
    return (one.arm, str(one.lanes), f"{one.ms:.3f}", f"{one.ms_there:.3f}", f"{one.speedup:.2f}", interval, *peaks)
