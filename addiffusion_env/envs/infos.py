"""What environments report beside the observation: the same keys, shapes and types from reset to the end.

So that any buffer can hold it: replay buffers make their arrays from the first info that they see. Numbers with a
fraction are np.float64, which is a float, and which TorchRL's reader can read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from addiffusion_env.backbones.base import Capabilities
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.envs.slot import Slot


def longest_episode(process: ProcessConfig) -> int:
    """Decisions of an episode that takes every step and every refinement."""
    once = len(process.decision_steps) + 1
    if not process.refine.enabled:
        return once
    back = process.refine.return_to
    ahead = 0 if back is None else sum(step > back for step in process.decision_steps) + 1
    return once + process.refine.limit * (1 + ahead)


@dataclass(frozen=True)
class InfoMaker:
    """Makes the infos of an environment.

    Attributes:
        image_size: (H, W) of a finished picture.
        mask_size: (h, w) of a refined region; ``None`` where *refine* draws no region anew.
        longest: decisions of the longest episode.
        terms: of the reward, by name.
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

    def info(
        self, slot: Slot, action: int = -1, illegal: bool = False, paid: Mapping[str, float] | None = None
    ) -> dict[str, Any]:
        """One lane's info.

        Args:
            slot: where it is.
            action: that led there; -1 after a reset.
            illegal: whether another one was asked for.
            paid: name -> value of each reward term; ``None`` pays nothing.
        """
        lane, look, picture = slot.lane, slot.lane.look, slot.picture
        trace = np.full(self.longest, -1, dtype=np.int8)
        trace[: len(lane.actions)] = lane.actions
        info: dict[str, Any] = {
            "prompt": lane.prompt.text,
            "prompt_id": lane.prompt.prompt_id,
            "task": lane.prompt.task,
            "seed": lane.seed,
            "sigma": np.float64(lane.sigma),
            "step": lane.step,
            "nfe": np.float64(lane.nfe),
            "network_calls": lane.calls,
            "refinements": lane.refinements,
            "price": np.float64(slot.price),
            # Zero and a flag, not NaN: Gymnasium's checker compares infos, and NaN is equal to nothing.
            "has_look": look is not None,
            "clip_score": np.float64(0 if look is None else look.clip_score[0]),
            "preference": np.float64(0 if look is None else look.preference[0]),
            "action": action,
            "illegal_action": illegal,
            "action_trace": trace,
            "reward_terms": {name: 0.0 if paid is None else float(paid[name]) for name in self.terms},
            "fault": "" if slot.fault is None else slot.fault.error.cause,
            "has_image": picture is not None,
            "image": np.zeros((*self.image_size, 3), np.uint8) if picture is None else picture.pixels(),
        }
        if self.mask_size is not None:
            mask = lane.refine_mask
            info["refine_mask"] = np.zeros(self.mask_size, np.float32) if mask is None else mask.copy()
        return info
