"""The stop-and-retry table: everything that an episode could have seen and made, recorded once for each picture.

A process whose refinement tries again (``refine.return_to``) moves on a small tree: tries, and in each try the steps
where the policy is asked, the picture at the schedule's end, and the picture that *stop* lands in from each step. All
noise is keyed by (prompt, seed), so that these are *the* pictures that any policy would meet; an episode read from the
table is the episode that the engine would play (``tests/rollouts/test_replay.py``). A million decisions then cost
minutes on one core.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from addiffusion_env.errors import ConfigError, ResumeError, RunFolderError

ARRAYS = ("clip_image", "clip_text", "dino", "clip_score", "preference", "change", "nfe", "calls", "correct")


@dataclass(frozen=True, eq=False)
class TryTable:
    """``P`` pictures, ``T`` tries of each, ``Q`` places in a try.

    With ``K`` steps where the policy is asked, place ``k < K`` is a step, place ``K`` the picture at the end of the
    schedule, place ``K + 1 + k`` the picture that *stop* at step ``k`` lands in, and place ``2 K + 1`` the one that
    *stop* lands in before the first evaluation, recorded for the first try alone.

    Attributes:
        prompts: P texts.
        prompt_ids: P ids.
        tasks: P tasks.
        demands: (P,) demands of each prompt.
        seeds: (P,) the picture's seed.
        steps: the K steps of the schedule where the policy is asked.
        log_snr: (Q,) half log-SNR at each place, as observations show it.
        start_log_snr: () the same before the first evaluation.
        clip_image: (P, T, Q, D) float32 unit embeddings.
        clip_text: (P, D) float32.
        dino: (P, T, Q, D2) float32 unit embeddings; D2 is 0 without a DINO model.
        clip_score: (P, T, Q) float32.
        preference: (P, T, Q) float32, standard deviations.
        change: (P, T, Q) float32 relative change of x0 at the last evaluation.
        nfe: (P, T, Q) float32 spent since the try began.
        calls: (P, T, Q) float32 network calls since the try began.
        correct: (P, T, Q) float32, the judge's verdict of finished pictures, 0 or 1; NaN for previews and without a
            judge. For evaluation alone: nothing that trains reads it.
    """

    prompts: tuple[str, ...]
    prompt_ids: tuple[str, ...]
    tasks: tuple[str, ...]
    demands: np.ndarray
    seeds: np.ndarray
    steps: tuple[int, ...]
    log_snr: np.ndarray
    start_log_snr: np.ndarray
    clip_image: np.ndarray
    clip_text: np.ndarray
    dino: np.ndarray
    clip_score: np.ndarray
    preference: np.ndarray
    change: np.ndarray
    nfe: np.ndarray
    calls: np.ndarray
    correct: np.ndarray

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def tries(self) -> int:
        """T."""
        return int(self.preference.shape[1])

    @property
    def finish(self) -> int:
        """The place of the picture at the schedule's end: K."""
        return len(self.steps)

    def landing(self, place: int) -> int:
        """The place that *stop* leads to from a step's place; ``-1`` is before the first evaluation.

        >>> [3 + 1 + place if place >= 0 else 2 * 3 + 1 for place in (0, 2, -1)]  # K = 3
        [4, 6, 7]
        """
        return self.finish + 1 + place if place >= 0 else 2 * self.finish + 1

    def rows(self, index: Sequence[int] | np.ndarray) -> TryTable:
        """The table of some of the pictures."""
        at = [int(i) for i in index]
        kept: dict[str, Any] = {name: getattr(self, name)[at] for name in (*ARRAYS, "demands", "seeds")}
        texts = {name: tuple(getattr(self, name)[i] for i in at) for name in ("prompts", "prompt_ids", "tasks")}
        return replace(self, **kept, **texts)

    @staticmethod
    def join(parts: Sequence[TryTable]) -> TryTable:
        """Several tables of one process as one.

        Raises:
            ConfigError: for none, or tables of different steps or numbers of tries.
        """
        if not parts:
            raise ConfigError("there is no table to join", "record at least one picture")
        shapes = {(part.steps, part.tries) for part in parts}
        if len(shapes) > 1:
            raise ConfigError(f"tables of different processes cannot be joined: {sorted(shapes)}", "record them alike")
        kept: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in (*ARRAYS, "demands", "seeds")
        }
        texts = {
            name: tuple(item for part in parts for item in getattr(part, name))
            for name in ("prompts", "prompt_ids", "tasks")
        }
        return replace(parts[0], **kept, **texts)

    def save(self, path: Path) -> None:
        """Writes one ``.npz`` file, whole or not at all.

        Raises:
            RunFolderError: when it cannot be written.
        """
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        texts = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                np.savez_compressed(file, texts=np.array(json.dumps(texts)), **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise RunFolderError(f"cannot write {path}: {error}", "free space, or choose another folder") from error

    @classmethod
    def load(cls, path: Path) -> TryTable:
        """Reads what :meth:`save` wrote; runs no code of the file's.

        Raises:
            ResumeError: for a file that is damaged or something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                texts = json.loads(str(file["texts"]))
                arrays = {name: file[name] for name in file.files if name != "texts"}
            return cls(**arrays, **{name: tuple(value) for name, value in texts.items()})
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ResumeError(f"{path} is not a table of tries: {error}", "delete it: it is recorded again") from error
