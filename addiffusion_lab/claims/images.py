"""Records as arrays: samplers x images, joined by prompt and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from addiffusion_env.errors import ConfigError, unknown
from addiffusion_env.evaluation.records import Record
from addiffusion_env.evaluation.tables import MEASURES, measure


@dataclass(frozen=True, eq=False)
class Means:
    """Values of some samplers on their common images.

    Attributes:
        prompts: (P,) index of each prompt into the table's.
        values: measure -> (samplers, P) means over the shared seeds of each prompt.
    """

    prompts: np.ndarray
    values: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True, eq=False)
class ImageTable:
    """The records of an evaluation.

    Attributes:
        samplers: M names.
        prompt_ids: P ids.
        constraints: (P,) number of constraints of each prompt.
        prompt: (N,) index of each image's prompt.
        columns: measure -> (M, N), NaN where a sampler has no such image or the value is unknown.
    """

    samplers: tuple[str, ...]
    prompt_ids: tuple[str, ...]
    constraints: np.ndarray
    prompt: np.ndarray
    columns: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, records: Sequence[Record], measures: Sequence[str]) -> ImageTable:
        """Joins records by prompt and seed.

        Args:
            records: records of all samplers; of duplicate images the last record is used.
            measures: names of measures or held-out scorers; values of missing scorers are unknown.

        Raises:
            ConfigError: without records.
            UnknownNameError: for a measure that no record has.
        """
        if not records:
            raise ConfigError("there are no records to judge claims by", "evaluate first: python eval_sb3.py")
        known = {*MEASURES, *(name for record in records for name in record.extra)}
        for name in measures:
            if name not in known:
                raise unknown("measure", name, known)
        samplers = tuple(dict.fromkeys(record.sampler for record in records))
        images = {key: n for n, key in enumerate(sorted({(r.prompt_id, r.seed) for r in records}))}
        asked = {record.prompt_id: record.constraints for record in records}
        prompt_ids = tuple(sorted(asked))
        place = {prompt_id: n for n, prompt_id in enumerate(prompt_ids)}
        row = {name: n for n, name in enumerate(samplers)}
        columns = {name: np.full((len(samplers), len(images)), np.nan) for name in measures}
        for record in records:
            at = row[record.sampler], images[record.prompt_id, record.seed]
            for name, column in columns.items():
                if name in MEASURES or name in record.extra:
                    column[at] = measure(record, name)
        return cls(
            samplers=samplers,
            prompt_ids=prompt_ids,
            constraints=np.array([asked[prompt_id] for prompt_id in prompt_ids], dtype=np.float64),
            prompt=np.array([place[prompt_id] for prompt_id, _ in images], dtype=np.intp),
            columns=columns,
        )

    def means(self, samplers: Sequence[str], measures: Sequence[str]) -> Means:
        """Means per prompt over the images for which every sampler has every measure.

        Raises:
            UnknownNameError: for a sampler without records.
        """
        for name in samplers:
            if name not in self.samplers:
                raise unknown("sampler", name, self.samplers)
        rows = [self.samplers.index(name) for name in samplers]
        chosen = {name: self.columns[name][rows] for name in measures}
        shared = np.logical_and.reduce([np.isfinite(column).all(0) for column in chosen.values()])
        prompts, index = np.unique(self.prompt[shared], return_inverse=True)
        sizes = np.bincount(index, minlength=len(prompts))

        def averaged(column: np.ndarray) -> np.ndarray:
            sums = [np.bincount(index, weights=one, minlength=len(prompts)) for one in column[:, shared]]
            return np.array(sums).reshape(len(rows), len(prompts)) / np.maximum(sizes, 1)

        return Means(prompts, {name: averaged(column) for name, column in chosen.items()})
