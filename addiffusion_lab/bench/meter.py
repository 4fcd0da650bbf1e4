"""Measures the time of each part of a round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from addiffusion_env.profiling import Clock
from addiffusion_lab.bench.setup import BenchmarkSetup

STAGES = ("denoise", "look", "decode")
"""Parts that are timed separately; the rest of a round is Python: coroutines, solver, policy, observations."""


class Stages:
    """The time of one round by part.

    Attributes:
        seconds: seconds of each of :data:`STAGES`.
    """

    def __init__(self, setup: BenchmarkSetup, clock: Clock) -> None:
        self.setup, self.clock = setup, clock
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Context manager that times the calls of denoiser, previewer, scorers and decoder."""
        calls = [
            (self.setup.backbone, "predict", "denoise"),
            (self.setup.backbone, "preview", "look"),
            (self.setup.scorers, "scores", "look"),
            (self.setup.backbone, "decode", "decode"),
        ]
        self.seconds = dict.fromkeys(STAGES, 0.0)
        for owner, name, stage in calls:
            setattr(owner, name, self._timing(getattr(owner, name), stage))
        try:
            yield
        finally:
            for owner, name, _ in calls:
                delattr(owner, name)  # restores the class's method

    def _timing(self, call: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = self.clock()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[stage] += self.clock() - began

        return timed
