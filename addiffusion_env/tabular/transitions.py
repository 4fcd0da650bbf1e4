"""Transitions of the tabular MDP, derived from the engine, where legality and dynamics of the actions are defined.

:func:`addiffusion_env.engine.coroutines.env_step` is run once for each legal action in each state of a decision
process, by the real engine on a blank stand-in for the model. There are few states: a place (:class:`.AttemptTable`) in
an attempt. A new action of the engine is thus included automatically; only its observations must be recorded.

The alternative, answering the engine's requests from the table at every decision, was measured (32 emoji prompts, five
attempts, the default experiment, CPU time of 128 lanes): 1,350 to 1,770 microseconds per decision, 820 to 900 with all
utilities cached, against 32 to 46 with these arrays; training with PPO took 8.6 to 11.6 times (cached 4.2 to 4.5 times)
as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from addiffusion_env.backbones.base import Backbone, Conditioning, Latents, Prediction
from addiffusion_env.engine.coroutines import env_step, legal_actions
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lane import Lane, open_lane
from addiffusion_env.engine.process import Action, ProcessConfig
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers.image_scores import NoScorers
from addiffusion_env.scorers.utility import Utility

START = -1
"""The place before the first evaluation: index -1, the last one of every array."""


def early_exit_place(place: int, steps: int) -> int:
    """The place that *stop* leads to from a place before the end, with ``steps`` decision steps in the schedule.

    >>> [early_exit_place(place, 3) for place in (0, 2, START)]
    [4, 6, 7]
    """
    return steps + 1 + place if place != START else 2 * steps + 1


@dataclass(frozen=True, eq=False)
class Transitions:
    """The transitions of ``A`` attempts, ``Q`` places plus :data:`START`, and the three actions.

    Illegal actions, and all actions in unreachable states, lead back to the same state.

    Attributes:
        legal: (A, Q + 1, 3) bool, whether an action is legal.
        attempt: (A, Q + 1, 3) int, the attempt that an action leads to.
        place: (A, Q + 1, 3) int, the place in it.
        ended: (A, Q + 1, 3) bool, whether the episode ends.
    """

    legal: np.ndarray
    attempt: np.ndarray
    place: np.ndarray
    ended: np.ndarray

    @classmethod
    def of(cls, backbone: Backbone, process: ProcessConfig) -> Transitions:
        """Derives the transitions of a process.

        Args:
            backbone: provides the schedule; its model is not called.
            process: a process whose episodes fit a table, see :func:`.check_recordable`.
        """
        steps = process.decision_steps
        attempts, places = process.refine.limit * process.refine.enabled + 1, 2 * len(steps) + 2
        shape = (attempts, places + 1, len(Action))
        same = np.meshgrid(np.arange(attempts), [*range(places), START], np.arange(len(Action)), indexing="ij")
        found = cls(np.zeros(shape, bool), same[0].copy(), same[1].copy(), np.ones(shape, bool))
        blank = cast(Backbone, _BlankBackbone(backbone, process))
        # Which image is better decides no transition, and the stand-in's scores are empty.
        process = replace(process, refine=replace(process.refine, utility=Utility()))
        engine = Engine(blank, NoScorers(), solver=process.solver)
        states: dict[tuple[int, int], Lane] = {(0, START): open_lane(blank, process, Prompt("blank", "blank"), 0)}
        new = list(states)
        while new:
            moves = [(state, int(a)) for state in new for a in np.flatnonzero(legal_actions([states[state]], process))]
            results = engine.run([env_step(blank, process, states[state], action) for state, action in moves])
            new = []
            for (state, action), (lane, image) in zip(moves, results, strict=True):
                place = _place(state[1], states[state], action, lane, steps)
                at, after = (*state, action), (lane.refinements, place)
                found.legal[at], found.ended[at] = True, image is not None
                found.attempt[at], found.place[at] = after
                if image is None and after not in states:
                    states[after] = lane
                    new.append(after)
        return found


def _place(before: int, lane: Lane, action: int, after: Lane, steps: tuple[int, ...]) -> int:
    """The place that an action led to."""
    if lane.shown is not None and action == Action.STOP:
        return before
    if after.remaining:
        return steps.index(after.step) if after.step else START
    return early_exit_place(before, len(steps)) if action == Action.STOP else len(steps)


class _BlankBackbone:
    """A stand-in for a backbone with its schedule and noise path, a single latent, and predictions of zero."""

    name, device, decoder_name = "blank", torch.device("cpu"), "blank"

    def __init__(self, backbone: Backbone, process: ProcessConfig) -> None:
        self.path = backbone.path
        self.timestep_position = backbone.timestep_position
        self.calls = process.network_calls
        self.levels = backbone.sigmas(process.steps, process.spacing)

    def sigmas(self, steps: int, spacing: str) -> np.ndarray:
        return self.levels

    def begin(self, images: Sequence[Any], *_: Any) -> tuple[Conditioning, Latents, list[np.ndarray]]:
        latents = Latents.cat([self.draw()[0] for _ in images])
        return Conditioning({}, ((),) * len(images)), latents, [self.levels] * len(images)

    def draw(self, *_: Any) -> tuple[Latents, np.ndarray]:
        level = torch.tensor(self.levels[:1], dtype=torch.float64)
        return Latents.start(torch.zeros(1, 1, 1, 1), level), self.levels

    def predict(self, x: torch.Tensor, sigma: Any, conditioning: Any, scale: torch.Tensor, capture: Any) -> Prediction:
        return Prediction(torch.zeros_like(x), torch.where(scale == 1, *self.calls))

    def preview(self, x0: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x0), 3, 1, 1)

    def decode(self, x: torch.Tensor, conditioning: Any = None) -> torch.Tensor:
        return torch.zeros(len(x), 3, 1, 1)
