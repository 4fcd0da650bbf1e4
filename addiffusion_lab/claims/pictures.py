"""Records as arrays: methods x pictures, joined by prompt and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from addiffusion_env.errors import ConfigError, unknown
from addiffusion_env.evaluation.records import Record
from addiffusion_env.evaluation.tables import MEASURES, measure


@dataclass(frozen=True, eq=False)
class Means:
    """Some methods on the pictures that all of them have.

    Attributes:
        prompts: (P,) index of each prompt into the table's.
        values: measure -> (methods, P) means over the shared seeds of each prompt.
    """

    prompts: np.ndarray
    values: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True, eq=False)
class PictureTable:
    """The records of an evaluation.

    Attributes:
        methods: M names.
        prompt_ids: P ids.
        demands: (P,) what each prompt asks for.
        prompt: (N,) index of each picture's prompt.
        columns: measure -> (M, N), NaN where a method has no such picture or nobody could say.
    """

    methods: tuple[str, ...]
    prompt_ids: tuple[str, ...]
    demands: np.ndarray
    prompt: np.ndarray
    columns: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, records: Sequence[Record], measures: Sequence[str]) -> PictureTable:
        """Joins records by prompt and seed.

        Args:
            records: of all methods; a picture that is there twice counts as its last record.
            measures: names of measures or held-out scorers; a scorer that a record lacks is unknown there.

        Raises:
            ConfigError: without records.
            UnknownNameError: for a name that is a measure of no record.
        """
        if not records:
            raise ConfigError("there are no records to judge claims by", "evaluate first: python eval_sb3.py")
        known = {*MEASURES, *(name for record in records for name in record.extra)}
        for name in measures:
            if name not in known:
                raise unknown("measure", name, known)
        methods = tuple(dict.fromkeys(record.method for record in records))
        pictures = {key: n for n, key in enumerate(sorted({(r.prompt_id, r.seed) for r in records}))}
        asked = {record.prompt_id: record.demands for record in records}
        prompt_ids = tuple(sorted(asked))
        place = {prompt_id: n for n, prompt_id in enumerate(prompt_ids)}
        row = {name: n for n, name in enumerate(methods)}
        columns = {name: np.full((len(methods), len(pictures)), np.nan) for name in measures}
        for record in records:
            at = row[record.method], pictures[record.prompt_id, record.seed]
            for name, column in columns.items():
                if name in MEASURES or name in record.extra:
                    column[at] = measure(record, name)
        return cls(
            methods=methods,
            prompt_ids=prompt_ids,
            demands=np.array([asked[prompt_id] for prompt_id in prompt_ids], dtype=np.float64),
            prompt=np.array([place[prompt_id] for prompt_id, _ in pictures], dtype=np.intp),
            columns=columns,
        )

    def means(self, methods: Sequence[str], measures: Sequence[str]) -> Means:
        """Prompt by prompt, over the pictures of which every method has every measure.

        Raises:
            UnknownNameError: for a method without records.
        """
        for name in methods:
            if name not in self.methods:
                raise unknown("method", name, self.methods)
        rows = [self.methods.index(name) for name in methods]
        chosen = {name: self.columns[name][rows] for name in measures}
        shared = np.logical_and.reduce([np.isfinite(column).all(0) for column in chosen.values()])
        prompts, index = np.unique(self.prompt[shared], return_inverse=True)
        sizes = np.bincount(index, minlength=len(prompts))

        def averaged(column: np.ndarray) -> np.ndarray:
            sums = [np.bincount(index, weights=one, minlength=len(prompts)) for one in column[:, shared]]
            return np.array(sums).reshape(len(rows), len(prompts)) / np.maximum(sizes, 1)

        return Means(prompts, {name: averaged(column) for name, column in chosen.items()})
