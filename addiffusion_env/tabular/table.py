"""The table of attempts: every preview and every image that an episode could reach, recorded once per image.

A process whose refinement begins another attempt (``refine.return_to``) has few states: attempts, and in each of them
the steps at which the policy decides, the image at the end of the schedule, and the image of an early exit from each
step. All noise is keyed by (prompt, seed), so every policy reaches the same images, and an episode read from the table
equals the engine's (``tests/tabular/test_tabular_mdp.py``). A million decisions take minutes on one core.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from addiffusion_env.backbones.identity import difference_words
from addiffusion_env.errors import ConfigError, ResumeError
from addiffusion_env.files import whole_file, writing_to
from addiffusion_env.observations.features import Observer
from addiffusion_env.settings import present

NUMBERS = ("clip_score", "preference", "change", "nfe", "calls", "correct")
VECTORS = ("clip_image", "dino", "features")
ARRAYS = ("clip_text", "constraints", "seeds", *VECTORS, *NUMBERS)
TEXTS = ("prompts", "prompt_ids", "tasks")


@dataclass(frozen=True, eq=False)
class AttemptTable:
    """``P`` images, ``T`` attempts of each, ``Q`` places in an attempt.

    With ``K`` decision steps, place ``k < K`` is a step, place ``K`` the image at the end of the schedule, place
    ``K + 1 + k`` the image of *stop* at step ``k``, and place ``2 K + 1`` the image of *stop* before the first
    evaluation, which later attempts have only if each begins there (``refine.return_to=0``).

    Attributes:
        prompts: P texts.
        prompt_ids: P ids.
        tasks: P tasks.
        constraints: (P,) number of constraints of each prompt.
        seeds: (P,) the image's seed.
        steps: the K steps of the schedule at which the policy decides.
        log_snr: (Q,) half log-SNR at each place, as in observations.
        start_log_snr: () half log-SNR before the first evaluation.
        clip_image: (P, T, Q, D) float32 unit embeddings.
        clip_text: (P, D) float32.
        dino: (P, T, Q, D2) float32 unit embeddings; D2 is 0 without a DINO model.
        features: (P, T, Q, F) float32 of the denoiser's middle block at the last evaluation, unnormalised; F is 0 if
            they were not recorded.
        clip_score: (P, T, Q) float32.
        preference: (P, T, Q) float32, standard deviations.
        change: (P, T, Q) float32 relative change of x0 at the last evaluation.
        nfe: (P, T, Q) float32 NFE since the attempt began.
        calls: (P, T, Q) float32 network calls since the attempt began.
        correct: (P, T, Q) float32, the judge's verdict of finished images, 0 or 1; NaN for previews and without a
            judge. For evaluation only: training does not read it.
        identity: identity of the recorder (:attr:`.Recorder.identity`); empty in files of earlier versions.
    """

    prompts: tuple[str, ...]
    prompt_ids: tuple[str, ...]
    tasks: tuple[str, ...]
    constraints: np.ndarray
    seeds: np.ndarray
    steps: tuple[int, ...]
    log_snr: np.ndarray
    start_log_snr: np.ndarray
    clip_image: np.ndarray
    clip_text: np.ndarray
    dino: np.ndarray
    features: np.ndarray
    clip_score: np.ndarray
    preference: np.ndarray
    change: np.ndarray
    nfe: np.ndarray
    calls: np.ndarray
    correct: np.ndarray
    identity: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def attempts(self) -> int:
        """T, the number of attempts."""
        return int(self.preference.shape[1])

    @property
    def finish(self) -> int:
        """K, the place of the image at the end of the schedule."""
        return len(self.steps)

    @property
    def place_steps(self) -> np.ndarray:
        """(Q,) int, the step of the schedule of each place with a preview; 0 for finished images."""
        return np.array([*self.steps, *[0] * (len(self.steps) + 2)])

    @property
    def starts(self) -> bool:
        """Whether every attempt begins before the first evaluation, and not the first one alone."""
        return bool(np.isfinite(self.nfe[:, 1:, -1]).all())

    @property
    def finished_places(self) -> tuple[int, ...]:
        """The places of finished images that differ.

        They are the end of the schedule and, where every attempt has one, the early exit before the first evaluation.
        Early exits from later steps repeat most of an image.
        """
        return (self.finish, self.nfe.shape[2] - 1) if self.starts else (self.finish,)

    def observer(self, keys: Sequence[str]) -> Observer:
        """The observer of these keys for the table.

        Raises:
            CapabilityError: for a key that needs the denoiser's features if none were recorded.
        """
        return Observer(self.clip_text.shape[1], keys, self.features.shape[-1])

    def rows(self, index: Sequence[int] | np.ndarray) -> AttemptTable:
        """The table of a subset of the images."""
        at = [int(i) for i in index]
        kept: dict[str, Any] = {name: getattr(self, name)[at] for name in ARRAYS}
        texts: dict[str, Any] = {name: tuple(getattr(self, name)[i] for i in at) for name in TEXTS}
        return replace(self, **kept, **texts)

    @staticmethod
    def join(parts: Sequence[AttemptTable]) -> AttemptTable:
        """Joins tables of the same process.

        Raises:
            ConfigError: for no table, or tables with different steps, numbers of attempts, models or scorers.
        """
        if not parts:
            raise ConfigError("there is no table to join", "record at least one image")
        shapes = {(part.steps, part.attempts, part.features.shape[-1]) for part in parts}
        if len(shapes) > 1:
            raise ConfigError(
                f"tables of different processes cannot be joined: {sorted(shapes)}",
                "record them with the same steps, attempts and features",
            )
        for part in parts:
            if part.identity != parts[0].identity:
                raise ConfigError(
                    "tables recorded with different models, scorers or processes cannot be joined: "
                    f"{difference_words(parts[0].identity, part.identity)}",
                    "keep the tables of each recording in a separate folder",
                )
        kept: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS}
        texts: dict[str, Any] = {name: tuple(item for part in parts for item in getattr(part, name)) for name in TEXTS}
        return replace(parts[0], **kept, **texts)

    def save(self, path: Path) -> None:
        """Writes one Parquet file atomically, with one row per recorded place.

        In the file attempts are called tries, for compatibility with files of earlier versions.

        Raises:
            RunFolderError: if it cannot be written.
        """
        import pyarrow.parquet as pq

        with writing_to(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                pq.write_table(self._to_arrow(), file, compression="zstd", write_page_checksum=True)

    def _to_arrow(self) -> Any:
        import pyarrow as pa

        row, number, place = at = np.nonzero(np.isfinite(self.nfe))
        columns: dict[str, Any] = {
            "image": row,
            "try": number,
            "place": place,
            "kind": [self.kind(int(q)) for q in place],
            **{name: [getattr(self, name)[i] for i in row] for name in TEXTS},
            **{name: getattr(self, name)[row] for name in ("constraints", "seeds")},
            **{name: getattr(self, name)[at] for name in NUMBERS},
            **{name: list(getattr(self, name)[at]) for name in VECTORS},
            "clip_text": list(self.clip_text[row]),
        }
        head = {
            "steps": list(self.steps),
            "log_snr": np.asarray(self.log_snr, float).tolist(),
            "start_log_snr": float(self.start_log_snr),
            "tries": self.attempts,
            "identity": dict(self.identity),
        }
        return pa.table(columns).replace_schema_metadata({"table of tries": json.dumps(head)})

    @classmethod
    def load(cls, path: Path) -> AttemptTable:
        """Reads a file of :meth:`save`; never executes code from the file.

        Raises:
            ResumeError: for a file that is damaged or not a table.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            found = pq.read_table(path, page_checksum_verification=True, memory_map=False)
            head = json.loads(found.schema.metadata[b"table of tries"])
            return cls._from_arrow(found, head)
        except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException) as error:
            raise ResumeError(
                f"{path} is not a table of attempts: {error}", "delete it: it is recorded again"
            ) from error

    @classmethod
    def _from_arrow(cls, found: Any, head: dict[str, Any]) -> AttemptTable:
        columns = {present("column", name, note=False): found.column(name) for name in found.column_names}
        at = tuple(columns[name].to_numpy() for name in ("image", "try", "place"))
        images = int(at[0].max()) + 1
        shape = (images, int(head["tries"]), 2 * len(head["steps"]) + 2)
        _, first = np.unique(at[0], return_index=True)

        def spread(name: str) -> np.ndarray:
            values = np.array(columns[name].to_pylist(), np.float32)  # (N,) or, of vectors, (N, D)
            whole = np.full((*shape, *values.shape[1:]), np.nan if values.ndim == 1 else 0, np.float32)
            whole[at] = values
            return whole

        texts: dict[str, Any] = {name: tuple(columns[name].take(first).to_pylist()) for name in TEXTS}
        arrays: dict[str, Any] = {name: spread(name) for name in (*NUMBERS, *VECTORS) if name in columns}
        arrays.setdefault("features", np.zeros((*shape, 0), np.float32))  # files of earlier versions have no column
        clip_text = np.array(columns["clip_text"].take(first).to_pylist(), np.float32)
        return cls(
            **texts,
            constraints=columns["constraints"].to_numpy()[first],
            seeds=columns["seeds"].to_numpy()[first],
            steps=tuple(head["steps"]),
            log_snr=np.array(head["log_snr"], dtype=np.float64),
            start_log_snr=np.array(head["start_log_snr"]),
            clip_text=clip_text.reshape(images, -1),
            identity=head.get("identity", {}),
            **arrays,
        )

    def kind(self, place: int) -> str:
        """``step 3``, ``end``, ``landed from 3`` or ``landed from the start``, as in files of earlier versions."""
        if place < self.finish:
            return f"step {self.steps[place]}"
        if place == self.finish:
            return "end"
        from_step = place - self.finish - 1
        return f"landed from {self.steps[from_step]}" if from_step < self.finish else "landed from the start"
