"""Infos of environments, made key by key for all lanes, since a dict per lane takes more time than the rest of a step.

Infos have constant keys, shapes and types, since replay buffers allocate their arrays from the first info they see.
Real numbers are np.float64, which is a Python float and readable by TorchRL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from addiffusion_env.backbones.base import Capabilities
from addiffusion_env.engine.images import pixels_of
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.envs.slot import Slot
from addiffusion_env.scorers.utility import ImageScoresBatch

Columns = Mapping[str, Any]
"""Key -> one value per lane: a list, an array (B, ...), or again columns."""


def longest_episode(process: ProcessConfig) -> int:
    """Maximum number of decisions in an episode: every step and every refinement."""
    decisions = len(process.decision_steps) + 1
    if not process.refine.enabled:
        return decisions
    back = process.refine.return_to
    repeated = 0 if back is None else sum(step > back for step in process.decision_steps) + 1
    return decisions + process.refine.limit * (1 + repeated)


@dataclass(frozen=True)
class InfoMaker:
    """Builds the infos of an environment.

    Attributes:
        image_size: (H, W) of a finished image.
        mask_size: (h, w) of a refinement mask; ``None`` if *refine* regenerates no regions.
        longest: maximum number of decisions in an episode.
        terms: names of the reward terms.
    """

    image_size: tuple[int, int]
    mask_size: tuple[int, int] | None
    longest: int
    terms: tuple[str, ...]

    @classmethod
    def of(cls, capabilities: Capabilities, process: ProcessConfig, terms: Iterable[str]) -> InfoMaker:
        """For a backbone, a decision process and the terms of a reward."""
        regions = process.refine.enabled and process.refine.region != "whole"
        masks = capabilities.latent_shape[-2:] if regions else None
        return cls(capabilities.image_size, masks, longest_episode(process), tuple(terms))

    def columns(
        self,
        slots: Sequence[Slot],
        actions: Sequence[int] | None = None,
        illegal: Sequence[bool] | None = None,
        paid: Mapping[str, np.ndarray] | None = None,
    ) -> Columns:
        """The infos of ``B`` lanes.

        Args:
            slots: the lanes' states.
            actions: the action that led to each; -1 (``None`` for all) after a reset.
            illegal: whether the requested action was illegal and replaced.
            paid: name -> (B,) value of each reward term; ``None`` for all 0.
        """
        count, lanes = len(slots), [slot.lane for slot in slots]
        scores = ImageScoresBatch.of([lane.scores for lane in lanes])
        traces = np.full((count, self.longest), -1, dtype=np.int8)
        images = np.zeros((count, *self.image_size, 3), np.uint8)
        for row, lane in enumerate(lanes):
            traces[row, : len(lane.actions)] = lane.actions
        if finished := {row: slot.image for row, slot in enumerate(slots) if slot.image is not None}:
            images[list(finished)] = pixels_of(list(finished.values()))
        nothing = [0.0] * count
        columns: dict[str, Any] = {
            "prompt": [lane.prompt.text for lane in lanes],
            "prompt_id": [lane.prompt.prompt_id for lane in lanes],
            "task": [lane.prompt.task for lane in lanes],
            "seed": [lane.seed for lane in lanes],
            "sigma": np.array([lane.sigma for lane in lanes], np.float64),
            "step": [lane.step for lane in lanes],
            "nfe": np.array([lane.nfe for lane in lanes], np.float64),
            "network_calls": [lane.calls for lane in lanes],
            "refinements": [lane.refinements for lane in lanes],
            "cost_per_nfe": np.array([slot.cost_per_nfe for slot in slots], np.float64),
            # Zero and a flag, not NaN: Gymnasium's checker compares infos, and NaN is equal to nothing.
            "has_scores": scores.known.tolist(),
            "clip_score": scores.score("clip_score"),
            "preference": scores.score("preference"),
            "action": [-1] * count if actions is None else list(actions),
            "illegal_action": [False] * count if illegal is None else list(illegal),
            "action_trace": traces,
            "reward_terms": {name: nothing if paid is None else paid[name].tolist() for name in self.terms},
            "fault": ["" if slot.fault is None else slot.fault.error.cause for slot in slots],
            "has_image": [slot.image is not None for slot in slots],
            "image": images,
        }
        if self.mask_size is not None:
            columns["refine_mask"] = masks = np.zeros((count, *self.mask_size), np.float32)
            for row, lane in enumerate(lanes):
                if (mask := lane.refine_mask) is not None:
                    masks[row] = mask
        return columns


def info_of(columns: Columns, row: int) -> dict[str, Any]:
    """One lane's info; its arrays are copies."""
    info: dict[str, Any] = {}
    for key, column in columns.items():
        if isinstance(column, Mapping):
            info[key] = info_of(column, row)
        else:
            info[key] = column[row].copy() if getattr(column, "ndim", 1) > 1 else column[row]
    return info


def stacked(columns: Columns, places: Sequence[int], lanes: int) -> dict[str, Any]:
    """The infos of a vector environment, as Gymnasium's ``_add_info`` joins them lane by lane.

    Args:
        columns: the infos of the lanes ``places``, increasing.
        places: these lanes.
        lanes: number of lanes of the environment; the others' values are 0 or ``None``, and masked.
    """
    found: dict[str, Any] = {}
    mask = np.zeros(lanes, dtype=bool)
    mask[places] = True
    for key, column in columns.items():
        if isinstance(column, Mapping):
            array: Any = stacked(column, places, lanes)
        else:
            array = values = _array(column)
            if len(places) < lanes:
                array = np.full((lanes, *values.shape[1:]), None if values.dtype == object else 0, values.dtype)
                array[places] = values
        found[key], found[f"_{key}"] = array, mask.copy()
    return found


def rows_of(columns: Columns, rows: Sequence[int]) -> Columns:
    """The infos of some of the lanes."""
    return {
        key: rows_of(column, rows) if isinstance(column, Mapping) else _array(column)[rows]
        for key, column in columns.items()
    }


def write(infos: dict[str, Any], columns: Columns, places: Sequence[int]) -> None:
    """Replaces the values of the lanes ``places`` in the infos of :func:`stacked`."""
    for key, column in columns.items():
        if isinstance(column, Mapping):
            write(infos[key], column, places)
        else:
            infos[key][places] = _array(column)


def _array(column: Any) -> np.ndarray:
    """A column as an array: of objects where Gymnasium takes them, such as texts."""
    if isinstance(column, np.ndarray):
        return column
    return np.array(column, dtype=None if isinstance(column[0], bool | int | float) else object)
