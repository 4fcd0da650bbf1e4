"""Walking through a stop-and-retry table: the episodes of many lanes at once, as arrays."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from addiffusion_env.observations.frame import Frame
from addiffusion_env.rewards.base import Transition
from addiffusion_env.rollouts.table import TryTable
from addiffusion_env.rollouts.transitions import START, Transitions
from addiffusion_env.scorers.liking import Liking
from addiffusion_env.scorers.look import Look
from addiffusion_env.scorers.look_batch import LookBatch


@dataclass(frozen=True, eq=False)
class Walkers:
    """Where ``B`` episodes are. Never changed in place.

    Attributes:
        row: (B,) which picture of the table.
        order: (B, T) which recorded try is met first, second ...
        number: (B,) which of them the lane is in, from 0.
        place: (B,) where in the try; -1 before the first evaluation.
        before: (B, 2) recorded try and place of the decision before; place -1 for none.
        spent: (B,) NFE of earlier tries.
        calls: (B,) network calls of earlier tries.
        best: (B, 2) recorded try and place of the best finished picture of earlier tries; place -1 for none.
        price: (B,) of one NFE.
    """

    row: np.ndarray
    order: np.ndarray
    number: np.ndarray
    place: np.ndarray
    before: np.ndarray
    spent: np.ndarray
    calls: np.ndarray
    best: np.ndarray
    price: np.ndarray

    @classmethod
    def start(cls, row: np.ndarray, order: np.ndarray, price: np.ndarray) -> Walkers:
        """Episodes at their beginning."""
        size = len(row)
        none = np.full((size, 2), START)
        zero = np.zeros(size)
        return cls(row, order, np.zeros(size, int), np.full(size, START), none, zero, zero.copy(), none.copy(), price)

    def __len__(self) -> int:
        return len(self.row)

    def merged(self, fresh: Walkers, where: np.ndarray) -> Walkers:
        """These, with the lanes of ``where`` (B,) bool taken from ``fresh``."""
        pairs = {name: (getattr(self, name), getattr(fresh, name)) for name in self.__dataclass_fields__}
        return Walkers(
            **{name: np.where(where.reshape(-1, *[1] * (old.ndim - 1)), new, old) for name, (old, new) in pairs.items()}
        )


@dataclass(frozen=True)
class Moved:
    """What one step of ``B`` episodes did.

    Attributes:
        walkers: where they are now; ended ones stay at their last place.
        ended: (B,) bool.
        picture: (B, 2) recorded try and place of an ended episode's picture.
        nfe: (B,) NFE that the step spent.
    """

    walkers: Walkers
    ended: np.ndarray
    picture: np.ndarray
    nfe: np.ndarray


@dataclass(frozen=True)
class Walk:
    """The decision process on a table: what each action does is read off the engine (:class:`.Transitions`).

    Attributes:
        table: the recorded tries.
        transitions: of the process, with no more refinements than tries were recorded.
        most: NFE that counts as a whole budget, as observations show it.
        highest_price: the price that observations show as 1.
        shown_limit: the refinements that observations count by: the limit of the process.
        liking: what the best of several pictures is chosen by.
    """

    table: TryTable
    transitions: Transitions
    most: float
    highest_price: float
    shown_limit: int
    liking: Liking = field(default_factory=Liking)

    @cached_property
    def liked(self) -> np.ndarray:
        """(P, T, Q) how much each picture is liked."""
        return self.liking(self.table.preference, self.table.clip_score, self.table.clip_text)

    def recorded(self, walkers: Walkers) -> np.ndarray:
        """(B,) the recorded try that each lane is in."""
        return walkers.order[np.arange(len(walkers)), walkers.number]

    def nfe(self, walkers: Walkers) -> np.ndarray:
        """(B,) NFE spent so far."""
        return walkers.spent + self._at(self.table.nfe, walkers.row, self.recorded(walkers), walkers.place)

    def network_calls(self, walkers: Walkers) -> np.ndarray:
        """(B,) network calls so far."""
        return walkers.calls + self._at(self.table.calls, walkers.row, self.recorded(walkers), walkers.place)

    def masks(self, walkers: Walkers) -> np.ndarray:
        """(B, 3) bool: legal actions."""
        return self.transitions.legal[walkers.number, walkers.place]

    def step(self, walkers: Walkers, actions: np.ndarray) -> Moved:
        """Takes one legal action in every lane."""
        move = (walkers.number, walkers.place, actions)
        number, place, ended = (
            self.transitions.attempt[move],
            self.transitions.place[move],
            self.transitions.ended[move],
        )
        old_nfe, here = self.nfe(walkers), np.stack([self.recorded(walkers), walkers.place], axis=1)
        again = number > walkers.number
        # A landing from the very beginning is recorded once: a draw like any other.
        order = walkers.order.copy()
        order[(walkers.place == START) & (place > self.table.finish)] = np.arange(order.shape[1])
        ahead = replace(
            walkers,
            order=order,
            number=number,
            place=place,
            before=here,
            spent=np.where(again, old_nfe, walkers.spent),
            calls=np.where(again, self.network_calls(walkers), walkers.calls),
            best=self._better(walkers.row, walkers.best, here, again & (walkers.place >= self.table.finish)),
        )
        made = self._better(ahead.row, ahead.best, np.stack([self.recorded(ahead), place], axis=1), ended)
        return Moved(ahead, ended, np.where(ended[:, None], made, START), self.nfe(ahead) - old_nfe)

    def _better(self, row: np.ndarray, kept: np.ndarray, new: np.ndarray, where: np.ndarray) -> np.ndarray:
        """(B, 2): the better-liked of two finished pictures in lanes of ``where``, the earlier of equals."""
        old_liked = self._at(self.liked, row, kept[:, 0], kept[:, 1], missing=-np.inf)
        new_liked = self._at(self.liked, row, new[:, 0], new[:, 1], missing=-np.inf)
        return np.where((where & (new_liked > old_liked))[:, None], new, kept)

    @staticmethod
    def _at(
        values: np.ndarray, row: np.ndarray, tried: np.ndarray, place: np.ndarray, missing: float = 0.0
    ) -> np.ndarray:
        """(B, ...) entries of a (P, T, Q, ...) array; ``missing`` where there is no place."""
        found = values[row, tried, np.maximum(place, 0)].astype(np.float64)
        absent = (place < 0).reshape(-1, *[1] * (found.ndim - 1))
        return np.where(absent, missing, found)

    def _looks(self, row: np.ndarray, at: np.ndarray) -> LookBatch:
        """The looks at (B, 2) recorded tries and places of some pictures."""
        table, where = self.table, (row, at[:, 0], np.maximum(at[:, 1], 0))
        known = at[:, 1] >= 0
        vectors = (np.where(known[:, None], values[where], 0.0) for values in (table.clip_image, table.dino))
        scores = (np.where(known, values[where], 0.0) for values in (table.clip_score, table.preference))
        clip_image, dino = vectors
        return LookBatch(Look(clip_image, table.clip_text[row], *scores, dino), known)

    def frame(self, walkers: Walkers) -> Frame:
        """The decision points, as :class:`envs.framing.Framer` makes them of lanes."""
        table, row, tried, place = self.table, walkers.row, self.recorded(walkers), walkers.place
        now = (row, tried, place)
        return Frame.of(
            self._looks(row, np.stack([tried, place], axis=1)),
            self._looks(row, walkers.before),
            clip_text=table.clip_text[row],
            x0_change=self._at(table.change, *now),
            log_snr=np.where(place >= 0, table.log_snr[np.maximum(place, 0)], table.start_log_snr),
            budget=self.nfe(walkers) / self.most,
            refinements=walkers.number / max(1, self.shown_limit),
            price=walkers.price / max(self.highest_price, 1e-12),
            liking=self._at(self.liked, *now),
            best_liking=self._at(self.liked, row, walkers.best[:, 0], walkers.best[:, 1]),
            has_best=(walkers.best[:, 1] >= 0).astype(np.float64),
            evidence=np.zeros((len(walkers), 3)),
            features=self._at(table.features, *now),
            finished=(place >= table.finish).astype(np.float64),
        )

    def transition(self, walkers: Walkers, moved: Moved, actions: np.ndarray) -> Transition:
        """A step as rewards need it."""
        after = moved.walkers
        reached = np.stack([self.recorded(after), after.place], axis=1)
        return Transition.of(
            self._looks(walkers.row, after.before),
            self._looks(walkers.row, np.where(moved.ended[:, None], moved.picture, reached)),
            clip_text=self.table.clip_text[walkers.row],
            nfe=moved.nfe,
            price=walkers.price,
            action=actions,
            terminal=moved.ended,
        )
