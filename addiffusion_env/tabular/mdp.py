"""The tabular MDP: the decision process on a table of attempts, for a batch of episodes as arrays.

Its transitions are derived from the engine, where legality and dynamics of the actions are defined:
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
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.batches import Conditioning, Latents, Prediction
from addiffusion_env.engine.coroutines import env_step, legal_actions
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lane import Lane, open_lane
from addiffusion_env.engine.process import Action, ProcessConfig
from addiffusion_env.observations.features import Frame
from addiffusion_env.prompts import Prompt
from addiffusion_env.rewards import Transition
from addiffusion_env.scorers.image_scores import ImageScores, ImageScoresBatch, NoScorers
from addiffusion_env.scorers.utility import Utility
from addiffusion_env.tabular.table import AttemptTable

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
        # Neither which image is better nor the solver decides a transition; the stand-in has no scores, no scheduler.
        process = replace(process, refine=replace(process.refine, utility=Utility()))
        engine = Engine(blank, NoScorers())
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
        self.early_exit_levels = backbone.early_exit_levels
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


@dataclass(frozen=True, eq=False)
class States:
    """The states of ``B`` episodes. Immutable.

    Attributes:
        row: (B,) index of the image in the table.
        order: (B, T) the order in which the recorded attempts are visited.
        attempt: (B,) number of the current attempt, from 0.
        place: (B,) the current place in the attempt; -1 before the first evaluation.
        before: (B, 2) recorded attempt and place of the previous decision; place -1 for none.
        spent: (B,) NFE of earlier attempts.
        calls: (B,) network calls of earlier attempts.
        best: (B, 2) recorded attempt and place of the best finished image of earlier attempts; place -1 for none.
        cost_per_nfe: (B,) cost per NFE.
    """

    row: np.ndarray
    order: np.ndarray
    attempt: np.ndarray
    place: np.ndarray
    before: np.ndarray
    spent: np.ndarray
    calls: np.ndarray
    best: np.ndarray
    cost_per_nfe: np.ndarray

    @classmethod
    def start(cls, row: np.ndarray, order: np.ndarray, cost_per_nfe: np.ndarray) -> States:
        """The initial states."""
        size = len(row)
        none = np.full((size, 2), START)
        zero = np.zeros(size)
        return cls(
            row, order, np.zeros(size, int), np.full(size, START), none, zero, zero.copy(), none.copy(), cost_per_nfe
        )

    def __len__(self) -> int:
        return len(self.row)

    def merged(self, fresh: States, where: np.ndarray) -> States:
        """A copy in which the lanes of ``where``, (B,) bool, are replaced by those of ``fresh``."""
        pairs = {name: (getattr(self, name), getattr(fresh, name)) for name in self.__dataclass_fields__}
        return States(
            **{name: np.where(where.reshape(-1, *[1] * (old.ndim - 1)), new, old) for name, (old, new) in pairs.items()}
        )


@dataclass(frozen=True)
class TabularStep:
    """The result of one step of ``B`` episodes.

    Attributes:
        states: the next states; ended episodes keep their last place.
        ended: (B,) bool, whether the episode has ended.
        image: (B, 2) recorded attempt and place of an ended episode's image.
        nfe: (B,) NFE of the step.
    """

    states: States
    ended: np.ndarray
    image: np.ndarray
    nfe: np.ndarray


@dataclass(frozen=True)
class TabularMDP:
    """The decision process on a table; its transitions are derived from the engine (:class:`.Transitions`).

    Attributes:
        table: the recorded attempts.
        transitions: transitions of the process, with at most as many attempts as were recorded.
        most: maximum NFE of an episode, by which observations normalise the budget.
        highest_cost_per_nfe: the cost per NFE that observations normalise to 1.
        shown_limit: the process's limit of refinements, by which observations normalise their number.
        utility: selects the best of several finished images.
    """

    table: AttemptTable
    transitions: Transitions
    most: float
    highest_cost_per_nfe: float
    shown_limit: int
    utility: Utility = field(default_factory=Utility)

    @cached_property
    def utilities(self) -> np.ndarray:
        """(P, T, Q) utility of each image and preview."""
        table = self.table
        return self.utility(table.preference, table.clip_score, table.clip_text, table.place_steps)

    @cached_property
    def priors(self) -> np.ndarray:
        """(P,) utility to expect of an image of each prompt, before it is drawn."""
        return self.utility.before(self.table.clip_text)

    def recorded(self, states: States) -> np.ndarray:
        """(B,) index of each lane's current attempt in the table."""
        return states.order[np.arange(len(states)), states.attempt]

    def nfe(self, states: States) -> np.ndarray:
        """(B,) NFE spent so far."""
        return states.spent + self._at(self.table.nfe, states.row, self.recorded(states), states.place)

    def network_calls(self, states: States) -> np.ndarray:
        """(B,) network calls so far."""
        return states.calls + self._at(self.table.calls, states.row, self.recorded(states), states.place)

    def utility_here(self, states: States) -> np.ndarray:
        """(B,) utility of the preview or finished image of each lane; 0 before the first evaluation."""
        return self._at(self.utilities, states.row, self.recorded(states), states.place)

    def masks(self, states: States) -> np.ndarray:
        """(B, 3) bool: legal actions."""
        return self.transitions.legal[states.attempt, states.place]

    def legalised(self, states: States, actions: np.ndarray) -> np.ndarray:
        """(B,) the actions; in place of an illegal one *continue*, or *stop* where that is illegal too."""
        legal = self.masks(states)
        instead = np.where(legal[:, Action.CONTINUE], Action.CONTINUE, Action.STOP)
        return np.where(legal[np.arange(len(states)), actions], actions, instead)

    def step(self, states: States, actions: np.ndarray) -> TabularStep:
        """Takes one legal action in every lane."""
        move, to = (states.attempt, states.place, actions), self.transitions
        attempt, place, ended = to.attempt[move], to.place[move], to.ended[move]
        old_nfe, here = self.nfe(states), np.stack([self.recorded(states), states.place], axis=1)
        refined = attempt > states.attempt
        order = states.order.copy()
        if not self.table.starts:  # then this early exit is recorded for attempt 0 only, whatever the order of attempts
            order[(states.place == START) & (place > self.table.finish)] = np.arange(order.shape[1])
        following = replace(
            states,
            order=order,
            attempt=attempt,
            place=place,
            before=here,
            spent=np.where(refined, old_nfe, states.spent),
            calls=np.where(refined, self.network_calls(states), states.calls),
            best=self._better(states.row, states.best, here, refined & (states.place >= self.table.finish)),
        )
        reached = np.stack([self.recorded(following), place], axis=1)
        image = self._better(following.row, following.best, reached, ended)
        return TabularStep(following, ended, np.where(ended[:, None], image, START), self.nfe(following) - old_nfe)

    def _better(self, row: np.ndarray, kept: np.ndarray, new: np.ndarray, where: np.ndarray) -> np.ndarray:
        """(B, 2): in lanes of ``where`` the finished image of higher utility, ``kept`` on a tie; elsewhere ``kept``."""
        old = self._at(self.utilities, row, kept[:, 0], kept[:, 1], missing=-np.inf)
        candidate = self._at(self.utilities, row, new[:, 0], new[:, 1], missing=-np.inf)
        return np.where((where & (candidate > old))[:, None], new, kept)

    @staticmethod
    def _at(
        values: np.ndarray, row: np.ndarray, attempt: np.ndarray, place: np.ndarray, missing: float = 0.0
    ) -> np.ndarray:
        """(B, ...) entries of a (P, T, Q, ...) array; ``missing`` where the place is -1."""
        found = values[row, attempt, np.maximum(place, 0)].astype(np.float64)
        absent = (place < 0).reshape(-1, *[1] * (found.ndim - 1))
        return np.where(absent, missing, found)

    def _scores_of(self, row: np.ndarray, at: np.ndarray) -> ImageScoresBatch:
        """The scores at (B, 2) recorded attempts and places of the images ``row``."""
        table, where = self.table, (row, at[:, 0], np.maximum(at[:, 1], 0))
        known = at[:, 1] >= 0
        vectors = (np.where(known[:, None], values[where], 0.0) for values in (table.clip_image, table.dino))
        scores = (np.where(known, values[where], 0.0) for values in (table.clip_score, table.preference))
        (clip_image, dino), (clip_score, preference) = vectors, scores
        return ImageScoresBatch(ImageScores(clip_image, table.clip_text[row], clip_score, preference, dino), known)

    def frame(self, states: States) -> Frame:
        """The decision states as a frame, as :class:`.envs.slot.Framer` builds it from lanes."""
        table, row, attempt, place = self.table, states.row, self.recorded(states), states.place
        now = (row, attempt, place)
        return Frame.of(
            self._scores_of(row, np.stack([attempt, place], axis=1)),
            self._scores_of(row, states.before),
            clip_text=table.clip_text[row],
            x0_change=self._at(table.change, *now),
            log_snr=np.where(place >= 0, table.log_snr[np.maximum(place, 0)], table.start_log_snr),
            budget=self.nfe(states) / self.most,
            refinements=states.attempt / max(1, self.shown_limit),
            cost_per_nfe=states.cost_per_nfe / max(self.highest_cost_per_nfe, 1e-12),
            utility=self.utility_here(states),
            best_utility=self._at(self.utilities, row, states.best[:, 0], states.best[:, 1]),
            has_best=(states.best[:, 1] >= 0).astype(np.float64),
            evidence=np.zeros((len(states), 3)),
            features=self._at(table.features, *now),
            prior=self.priors[row],
            finished=(place >= table.finish).astype(np.float64),
        )

    def transition(self, states: States, step: TabularStep, actions: np.ndarray) -> Transition:
        """The step as the input of reward terms."""
        after = step.states
        reached = np.stack([self.recorded(after), after.place], axis=1)
        return Transition.of(
            self._scores_of(states.row, after.before),
            self._scores_of(states.row, np.where(step.ended[:, None], step.image, reached)),
            clip_text=self.table.clip_text[states.row],
            nfe=step.nfe,
            cost_per_nfe=states.cost_per_nfe,
            action=actions,
            terminal=step.ended,
        )
