"""One lane's place in an environment: its picture, and which episode it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.faults import Fault
from addiffusion_env.engine.lane import (
    Lane,
    look_state,
    picture_state,
    restore_lane,
    restore_look,
    restore_picture,
)
from addiffusion_env.engine.requests import Picture
from addiffusion_env.errors import AdDiffusionError
from addiffusion_env.scorers.look import Look


def portable(state: Any) -> Any:
    """A state with its tensors on the CPU, each with storage of its own: rows of a batch would keep the whole batch."""
    if isinstance(state, torch.Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, Mapping):
        return {key: portable(value) for key, value in state.items()}
    return [portable(value) for value in state] if isinstance(state, list | tuple) else state


@dataclass(frozen=True)
class Slot:
    """One lane's place.

    Attributes:
        seed: the lane's seed.
        episode: how many episodes it has begun, less one.
        lane: the picture in the making.
        before: its look at the decision before.
        price: of one NFE in this episode.
        decisions: taken in this episode.
        picture: the finished picture, once there is one.
        fault: why the episode was dropped, once it was; the lane is then where it was before the action that failed.
    """

    seed: int
    episode: int
    lane: Lane
    before: Look | None
    price: float
    decisions: int = 0
    picture: Picture | None = None
    fault: Fault | None = None

    def moved(self, result: tuple[Lane, Picture | None] | Fault) -> Slot:
        """The slot after its action, or where it was with the fault that it met."""
        if isinstance(result, Fault):
            return replace(self, decisions=self.decisions + 1, fault=result)
        lane, picture = result
        return replace(self, lane=lane, before=self.lane.look, decisions=self.decisions + 1, picture=picture)

    def state(self) -> dict[str, Any]:
        """Plain tensors, numbers and strings, from which :meth:`restored` makes the same slot."""
        return {
            "seed": self.seed,
            "episode": self.episode,
            "price": self.price,
            "decisions": self.decisions,
            "before": look_state(self.before),
            "lane": self.lane.state(),
            "picture": picture_state(self.picture),
            "fault": None if self.fault is None else [self.fault.error.cause, self.fault.error.remedy],
        }

    @classmethod
    def restored(cls, backbone: Backbone, state: Mapping[str, Any]) -> Slot:
        """The slot that :meth:`state` described."""
        fault = state.get("fault")
        return cls(
            seed=state["seed"],
            episode=state["episode"],
            lane=restore_lane(backbone, state["lane"]),
            before=restore_look(state["before"]),
            price=state["price"],
            decisions=state["decisions"],
            picture=restore_picture(state.get("picture")),
            fault=None if fault is None else Fault(AdDiffusionError(*fault)),
        )
