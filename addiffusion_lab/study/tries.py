"""Tries of fixed-step DDIM: what fixed steps, best-of-n, threshold-retry and prompt rules are all made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.baselines import make_method
from addiffusion_env.baselines.base import SEED_STRIDE
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.episode import Episode
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.errors import ResumeError
from addiffusion_env.files import whole_file
from addiffusion_env.prompts.base import Prompt
from addiffusion_env.scorers.liking import Liking
from addiffusion_env.scorers.look import LookScorers
from addiffusion_env.tabular.recorder import Judge

CHUNK = 64


@dataclass(frozen=True, eq=False)
class Tries:
    """Finished pictures of fixed-step DDIM, trailing and guided throughout; NaN where a try was not made.

    Attributes:
        steps: evaluations of a try.
        preference: (P, T).
        clip_score: (P, T).
        correct: (P, T) the judge's verdict, 0 or 1.
    """

    steps: int
    preference: np.ndarray
    clip_score: np.ndarray
    correct: np.ndarray


@dataclass(frozen=True)
class TriesRecorder:
    """Records tries; a file for each number of steps, saved after every 64 pictures.

    Attributes:
        backbone: the model.
        scorers: what looks at finished pictures.
        judge: gives the verdicts.
        base: the evaluation's process.
        prompts: P of them; picture seed 0.
        folder: where files go.
    """

    backbone: Backbone
    scorers: LookScorers
    judge: Judge
    base: ProcessConfig
    prompts: Sequence[Prompt]
    folder: Path

    def record(self, steps: int, tries: int, until: Sequence[tuple[Liking, float]] | None) -> Tries:
        """Makes what is missing.

        Args:
            steps: evaluations of a try.
            tries: at most so many of a prompt.
            until: a prompt needs no further try once one picture is liked this much in each of these ways;
                ``None`` makes all tries.
        """
        path = self.folder / f"fixed-{steps}-{self._digest()}.npz"
        found = self._read(path, tries)
        for number in range(tries):
            due = [row for row in range(len(self.prompts)) if number == 0 or self._wanted(found, row, until)]
            todo = [row for row in due if np.isnan(found["correct"][row, number])]
            for first in range(0, len(todo), CHUNK):
                rows = todo[first : first + CHUNK]
                for name, values in self._make(steps, number, rows).items():
                    found[name][rows, number] = values
                self._write(path, found)
                print(f"fixed:{steps}, try {number + 1}: {first + len(rows)} of {len(todo)}", flush=True)
        return Tries(steps, found["preference"], found["clip_score"], found["correct"])

    def _wanted(self, found: dict[str, np.ndarray], row: int, until: Sequence[tuple[Liking, float]] | None) -> bool:
        if until is None:
            return True
        scores = (found["preference"][row : row + 1], found["clip_score"][row : row + 1])
        text = self.scorers.clip.embed_texts([self.prompts[row]]).numpy()
        return not np.all([liking(*scores, text) >= least for liking, least in until], axis=0).any()

    def _make(self, steps: int, number: int, rows: Sequence[int]) -> dict[str, np.ndarray]:
        method = make_method(f"fixed:{steps}")
        method.bind(self.backbone, self.scorers)
        process = method.process(self.base)
        engine = Engine(self.backbone, self.scorers, solver=process.solver, decider=method.decide)
        prompts = [self.prompts[row] for row in rows]
        programs = (method.program(self.backbone, process, prompt, number * SEED_STRIDE) for prompt in prompts)
        episodes: list[Episode] = engine.run(programs, max_lanes=16)
        verdicts = self.judge([episode.picture.image for episode in episodes], prompts)
        return {
            "preference": np.array([episode.picture.look.preference[0] for episode in episodes]),
            "clip_score": np.array([episode.picture.look.clip_score[0] for episode in episodes]),
            "correct": np.array([np.nan if verdict is None else float(verdict) for verdict in verdicts]),
        }

    def _read(self, path: Path, tries: int) -> dict[str, np.ndarray]:
        found = {name: np.full((len(self.prompts), tries), np.nan) for name in ("preference", "clip_score", "correct")}
        if path.is_file():
            try:
                with np.load(path, allow_pickle=False) as file:
                    for name, values in found.items():
                        kept = file[name][:, :tries]
                        values[:, : kept.shape[1]] = kept
            except (OSError, ValueError, KeyError) as error:
                raise ResumeError(f"{path} cannot be read: {error}", "delete it: it is recorded again") from error
        return found

    def _write(self, path: Path, found: dict[str, np.ndarray]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            np.savez(file, **found)  # type: ignore[arg-type]

    def _digest(self) -> str:
        ids = json.dumps([prompt.prompt_id for prompt in self.prompts])
        return hashlib.sha256(ids.encode()).hexdigest()[:12]
