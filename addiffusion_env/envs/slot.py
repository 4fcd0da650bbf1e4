"""One lane's place in an environment: its picture, and which episode it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from addiffusion_env.engine.faults import Fault
from addiffusion_env.engine.lane import Lane, look_state
from addiffusion_env.engine.requests import Picture
from addiffusion_env.scorers.look import Look


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
        """Plain tensors, numbers and strings; of an ended episode only which one it was."""
        head = {"seed": self.seed, "episode": self.episode}
        if self.picture is not None or self.fault is not None:
            return {**head, "lane": None}
        before = look_state(self.before)
        return {**head, "price": self.price, "decisions": self.decisions, "before": before, "lane": self.lane.state()}

    def info(self) -> dict[str, Any]:
        """What Gymnasium reports beside the observation."""
        lane = self.lane
        info: dict[str, Any] = {
            "prompt": lane.prompt.text,
            "prompt_id": lane.prompt.prompt_id,
            "task": lane.prompt.task,
            "seed": lane.seed,
            "sigma": lane.sigma,
            "step": lane.step,
            "nfe": float(lane.nfe),
            "network_calls": lane.calls,
            "refinements": lane.refinements,
            "price": self.price,
        }
        if lane.look is not None:
            info["clip_score"] = float(lane.look.clip_score[0])
            info["preference"] = float(lane.look.preference[0])
        if lane.refine_mask is not None:
            info["refine_mask"] = lane.refine_mask
        if self.picture is not None:
            info["image"] = self.picture.pixels()
            info["action_trace"] = list(lane.actions)
        if self.fault is not None:
            info["fault"] = self.fault.error.cause
        return info
