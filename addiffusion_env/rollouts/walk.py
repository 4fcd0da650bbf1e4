"""Walking through a stop-and-retry table: the episodes of many lanes at once, as arrays."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from addiffusion_env.engine.process import Action
from addiffusion_env.observations.frame import Frame
from addiffusion_env.rollouts.table import TryTable
from addiffusion_env.scorers.liking import Liking

START = -1
"""The place before the first evaluation."""


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
    """The decision process on a table; what the engine's ``turn`` does to lanes, done to indices.

    Attributes:
        table: the recorded tries.
        limit: most refinements of an episode, at most one less than the tries recorded.
        most: NFE that counts as a whole budget, as observations show it.
        liking: what the best of several pictures is chosen by.
        refine: whether *refine* is ever legal.
        highest_price: the price that observations show as 1.
        shown_limit: the refinements that observations count by: the limit of the process.
    """

    table: TryTable
    limit: int
    most: float
    highest_price: float
    shown_limit: int
    liking: Liking = field(default_factory=Liking)
    refine: bool = True

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
        shown = walkers.place >= self.table.finish
        again = (walkers.place > START) & (walkers.number < self.limit) & self.refine
        return np.stack([~shown, np.ones_like(shown), again], axis=1)

    def step(self, walkers: Walkers, actions: np.ndarray) -> Moved:
        """Takes one legal action in every lane."""
        table, at, size = self.table, np.arange(len(walkers)), len(walkers)
        old_nfe, tried = self.nfe(walkers), self.recorded(walkers)
        shown = walkers.place >= table.finish
        again = actions == Action.REFINE
        accepted = shown & (actions == Action.STOP)
        # Where a step or a landing leads.
        landing = np.where(walkers.place >= 0, table.finish + 1 + walkers.place, 2 * table.finish + 1)
        onward = np.where(actions == Action.STOP, landing, walkers.place + 1)
        # A landing from the very beginning is recorded once: a draw like any other.
        order = walkers.order.copy()
        early = (walkers.place == START) & (actions == Action.STOP)
        order[early] = np.arange(order.shape[1])
        best = self._better(walkers.row, walkers.best, np.stack([tried, walkers.place], 1), shown & again)
        ahead = replace(
            walkers,
            order=order,
            number=walkers.number + again,
            place=np.where(accepted, walkers.place, np.where(again, 0, onward)),
            before=np.stack([tried, walkers.place], axis=1),
            spent=np.where(again, old_nfe, walkers.spent),
            calls=np.where(again, self.network_calls(walkers), walkers.calls),
            best=best,
        )
        made = ahead.place >= table.finish
        ended = made & (accepted | ~self.masks(ahead)[:, Action.REFINE])
        picture = self._better(ahead.row, ahead.best, np.stack([ahead.order[at, ahead.number], ahead.place], 1), ended)
        none = np.full((size, 2), START)
        return Moved(ahead, ended, np.where(ended[:, None], picture, none), self.nfe(ahead) - old_nfe)

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

    def frame(self, walkers: Walkers) -> Frame:
        """The decision points, as :class:`envs.framing.Framer` makes them of lanes."""
        table, row, tried, place = self.table, walkers.row, self.recorded(walkers), walkers.place
        was = (row, walkers.before[:, 0], walkers.before[:, 1])
        now = (row, tried, place)
        return Frame(
            clip_image=self._at(table.clip_image, *now),
            clip_text=table.clip_text[row],
            clip_score=self._at(table.clip_score, *now),
            clip_before=self._at(table.clip_score, *was),
            preference=self._at(table.preference, *now),
            preference_before=self._at(table.preference, *was),
            dino_similarity=(self._at(table.dino, *now) * self._at(table.dino, *was)).sum(1),
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

    def scores(self, walkers: Walkers, moved: Moved) -> dict[str, np.ndarray]:
        """CLIP score and preference before and after the step, DINO similarity and prompts, as rewards need them."""
        table, after = self.table, moved.walkers
        now = np.stack([self.recorded(after), after.place], axis=1)
        seen = np.where(moved.ended[:, None], moved.picture, now)
        then = np.stack([self.recorded(walkers), walkers.place], axis=1)
        both = (self._at(table.dino, after.row, *seen.T), self._at(table.dino, after.row, *then.T))
        return {
            "clip_before": self._at(table.clip_score, after.row, then[:, 0], then[:, 1], np.nan),
            "clip_after": self._at(table.clip_score, after.row, *seen.T),
            "preference_before": self._at(table.preference, after.row, then[:, 0], then[:, 1], np.nan),
            "preference_after": self._at(table.preference, after.row, *seen.T),
            "dino_similarity": (both[0] * both[1]).sum(1),
            "clip_text": table.clip_text[after.row],
        }
