"""What a policy leaves on the table: its utility beside the best constant behaviour's and the oracle's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from addiffusion_env.rewards.base import Transition
from addiffusion_env.rewards.composite import Reward
from addiffusion_env.rollouts.outcomes import Outcomes
from addiffusion_env.rollouts.table import TryTable


@dataclass(frozen=True)
class TableRegret:
    """Mean utilities: what the reward pays for the picture given, less the price of what was spent.

    Attributes:
        price: of one NFE.
        utility: of the policy.
        best_constant: in words; chosen in hindsight on these very pictures.
        constant_utility: of the best constant behaviour.
        oracle_utility: of one that knows every picture beforehand: it drops all other tries at their first look.
        oracle_nfe: mean NFE of the oracle.
    """

    price: float
    utility: float
    best_constant: str
    constant_utility: float
    oracle_utility: float
    oracle_nfe: float

    @property
    def to_constant(self) -> float:
        """Utility given away to the best constant behaviour; below 0 the policy beats it."""
        return self.constant_utility - self.utility

    @property
    def to_oracle(self) -> float:
        """Utility given away to the oracle; not below 0 but for pictures that only an odd path reaches."""
        return self.oracle_utility - self.utility


def worth(reward: Reward, preference: np.ndarray, clip_score: np.ndarray, clip_text: np.ndarray) -> np.ndarray:
    """What a reward pays at the end for (P, ...) pictures of such scores and (P, D) prompts, whatever they cost."""
    flat = np.asarray(preference, dtype=np.float64).reshape(-1)
    nothing, zero = np.full(len(flat), np.nan), np.zeros(len(flat))
    known = np.isfinite(flat)
    transition = Transition(
        clip_before=nothing,
        clip_after=np.where(known, np.asarray(clip_score, np.float64).reshape(-1), 0.0),
        preference_before=nothing,
        preference_after=np.where(known, flat, 0.0),
        dino_similarity=zero,
        clip_text=np.repeat(clip_text, len(flat) // len(clip_text), axis=0),
        nfe=zero,
        price=zero,
        action=np.ones(len(flat), int),
        terminal=np.ones(len(flat), bool),
        reference=nothing,
    )
    total, _ = reward(transition)
    return np.where(known, total, -np.inf).reshape(np.shape(preference))


def regret(table: TryTable, outcomes: Outcomes, reward: Reward, price: float) -> TableRegret:
    """Compares a policy's outcomes on a table with its constant behaviours and its oracle."""
    values = worth(reward, table.preference, table.clip_score, table.clip_text)
    name, constant = best_constant(table, values, price)
    best, spent = oracle(table, values, price)
    gained = worth(reward, outcomes.preference, outcomes.clip_score, table.clip_text)
    return TableRegret(
        price=price,
        utility=float((gained - price * outcomes.nfe).mean()),
        best_constant=name,
        constant_utility=constant,
        oracle_utility=float(best.mean()),
        oracle_nfe=float(spent.mean()),
    )


def oracle(table: TryTable, values: np.ndarray, price: float) -> tuple[np.ndarray, np.ndarray]:
    """(P,) utility and (P,) NFE of one that knows all (P, T, Q) values: it drops other tries at their first look."""
    finished = slice(table.finish, None)
    first = np.nan_to_num(table.nfe[:, :, 0])
    dropped = np.cumsum(first, axis=1) - first
    spent = (np.nan_to_num(table.nfe[:, :, finished]) + dropped[:, :, None]).reshape(len(table), -1)
    utility = values[:, :, finished].reshape(len(table), -1) - price * spent
    pick = utility.argmax(1)
    rows = np.arange(len(table))
    return utility[rows, pick], spent[rows, pick]


def best_constant(table: TryTable, values: np.ndarray, price: float) -> tuple[str, float]:
    """The best of: finish at one place, in the first try or as the best of n tries."""
    found = []
    for place in range(table.finish, values.shape[2]):
        step = place - table.finish - 1
        where = "at the end" if step < 0 else f"by a stop at step {(*table.steps, 0)[step]}"
        for tries in range(1, table.tries + 1):
            made, spent = values[:, :tries, place], table.nfe[:, :tries, place]
            if np.isfinite(made).all():
                found.append((float((made.max(1) - price * spent.sum(1)).mean()), f"best of {tries} {where}"))
    utility, name = max(found)
    return name, utility
