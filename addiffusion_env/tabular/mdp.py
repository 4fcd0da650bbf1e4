"""The decision process on a table of attempts: the episodes of many lanes at once, as arrays."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from addiffusion_env.observations import Frame
from addiffusion_env.rewards import Transition
from addiffusion_env.scorers.image_scores import ImageScores
from addiffusion_env.scorers.utility import ImageScoresBatch, Utility
from addiffusion_env.tabular.table import AttemptTable
from addiffusion_env.tabular.transitions import START, Transitions


@dataclass(frozen=True, eq=False)
class States:
    """Where ``B`` episodes are. Never changed in place.

    Attributes:
        row: (B,) which image of the table.
        order: (B, T) which recorded attempt is met first, second ...
        attempt: (B,) which of them the lane is in, from 0.
        place: (B,) where in the attempt; -1 before the first evaluation.
        before: (B, 2) recorded attempt and place of the decision before; place -1 for none.
        spent: (B,) NFE of earlier attempts.
        calls: (B,) network calls of earlier attempts.
        best: (B, 2) recorded attempt and place of the best finished image of earlier attempts; place -1 for none.
        cost_per_nfe: (B,) of one NFE.
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
        """Episodes at their beginning."""
        size = len(row)
        none = np.full((size, 2), START)
        zero = np.zeros(size)
        return cls(
            row, order, np.zeros(size, int), np.full(size, START), none, zero, zero.copy(), none.copy(), cost_per_nfe
        )

    def __len__(self) -> int:
        return len(self.row)

    def merged(self, fresh: States, where: np.ndarray) -> States:
        """These, with the lanes of ``where`` (B,) bool taken from ``fresh``."""
        pairs = {name: (getattr(self, name), getattr(fresh, name)) for name in self.__dataclass_fields__}
        return States(
            **{name: np.where(where.reshape(-1, *[1] * (old.ndim - 1)), new, old) for name, (old, new) in pairs.items()}
        )


@dataclass(frozen=True)
class TabularStep:
    """What one step of ``B`` episodes did.

    Attributes:
        states: where they are now; ended ones stay at their last place.
        ended: (B,) bool.
        image: (B, 2) recorded attempt and place of an ended episode's image.
        nfe: (B,) NFE that the step spent.
    """

    states: States
    ended: np.ndarray
    image: np.ndarray
    nfe: np.ndarray


@dataclass(frozen=True)
class TabularMDP:
    """The decision process on a table: what each action does is read off the engine (:class:`.Transitions`).

    Attributes:
        table: the recorded attempts.
        transitions: of the process, with no more refinements than attempts were recorded.
        most: NFE that counts as a whole budget, as observations show it.
        highest_cost_per_nfe: the cost per NFE that observations show as 1.
        shown_limit: the refinements that observations count by: the limit of the process.
        utility: what the best of several images is chosen by.
    """

    table: AttemptTable
    transitions: Transitions
    most: float
    highest_cost_per_nfe: float
    shown_limit: int
    utility: Utility = field(default_factory=Utility)

    @cached_property
    def liked(self) -> np.ndarray:
        """(P, T, Q) how much each image is liked."""
        return self.utility(self.table.preference, self.table.clip_score, self.table.clip_text)

    def recorded(self, states: States) -> np.ndarray:
        """(B,) the recorded attempt that each lane is in."""
        return states.order[np.arange(len(states)), states.attempt]

    def nfe(self, states: States) -> np.ndarray:
        """(B,) NFE spent so far."""
        return states.spent + self._at(self.table.nfe, states.row, self.recorded(states), states.place)

    def network_calls(self, states: States) -> np.ndarray:
        """(B,) network calls so far."""
        return states.calls + self._at(self.table.calls, states.row, self.recorded(states), states.place)

    def masks(self, states: States) -> np.ndarray:
        """(B, 3) bool: legal actions."""
        return self.transitions.legal[states.attempt, states.place]

    def step(self, states: States, actions: np.ndarray) -> TabularStep:
        """Takes one legal action in every lane."""
        move = (states.attempt, states.place, actions)
        attempt, place, ended = (
            self.transitions.attempt[move],
            self.transitions.place[move],
            self.transitions.ended[move],
        )
        old_nfe, here = self.nfe(states), np.stack([self.recorded(states), states.place], axis=1)
        again = attempt > states.attempt
        # An early exit from the very beginning is recorded once: a draw like any other.
        order = states.order.copy()
        order[(states.place == START) & (place > self.table.finish)] = np.arange(order.shape[1])
        ahead = replace(
            states,
            order=order,
            attempt=attempt,
            place=place,
            before=here,
            spent=np.where(again, old_nfe, states.spent),
            calls=np.where(again, self.network_calls(states), states.calls),
            best=self._better(states.row, states.best, here, again & (states.place >= self.table.finish)),
        )
        made = self._better(ahead.row, ahead.best, np.stack([self.recorded(ahead), place], axis=1), ended)
        return TabularStep(ahead, ended, np.where(ended[:, None], made, START), self.nfe(ahead) - old_nfe)

    def _better(self, row: np.ndarray, kept: np.ndarray, new: np.ndarray, where: np.ndarray) -> np.ndarray:
        """(B, 2): the better-liked of two finished images in lanes of ``where``, the earlier of equals."""
        old_liked = self._at(self.liked, row, kept[:, 0], kept[:, 1], missing=-np.inf)
        new_liked = self._at(self.liked, row, new[:, 0], new[:, 1], missing=-np.inf)
        return np.where((where & (new_liked > old_liked))[:, None], new, kept)

    @staticmethod
    def _at(
        values: np.ndarray, row: np.ndarray, attempt: np.ndarray, place: np.ndarray, missing: float = 0.0
    ) -> np.ndarray:
        """(B, ...) entries of a (P, T, Q, ...) array; ``missing`` where there is no place."""
        found = values[row, attempt, np.maximum(place, 0)].astype(np.float64)
        absent = (place < 0).reshape(-1, *[1] * (found.ndim - 1))
        return np.where(absent, missing, found)

    def _scores_of(self, row: np.ndarray, at: np.ndarray) -> ImageScoresBatch:
        """The looks at (B, 2) recorded attempts and places of some images."""
        table, where = self.table, (row, at[:, 0], np.maximum(at[:, 1], 0))
        known = at[:, 1] >= 0
        vectors = (np.where(known[:, None], values[where], 0.0) for values in (table.clip_image, table.dino))
        scores = (np.where(known, values[where], 0.0) for values in (table.clip_score, table.preference))
        clip_image, dino = vectors
        return ImageScoresBatch(ImageScores(clip_image, table.clip_text[row], *scores, dino), known)

    def frame(self, states: States) -> Frame:
        """The decision points, as :class:`envs.framing.Framer` makes them of lanes."""
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
            utility=self._at(self.liked, *now),
            best_utility=self._at(self.liked, row, states.best[:, 0], states.best[:, 1]),
            has_best=(states.best[:, 1] >= 0).astype(np.float64),
            evidence=np.zeros((len(states), 3)),
            features=self._at(table.features, *now),
            finished=(place >= table.finish).astype(np.float64),
        )

    def transition(self, states: States, step: TabularStep, actions: np.ndarray) -> Transition:
        """A step as rewards need it."""
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
