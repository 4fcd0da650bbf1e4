"""What a policy leaves on the table: its utility beside the best constant behaviour's and the oracle's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from addiffusion_env.rewards import Reward, Transition
from addiffusion_env.scorers.image_scores import ImageScores
from addiffusion_env.scorers.utility import ImageScoresBatch
from addiffusion_env.tabular.outcomes import Outcomes
from addiffusion_env.tabular.table import AttemptTable


@dataclass(frozen=True)
class Regret:
    """Mean utilities: the value of the image given, less the cost per NFE of what was spent.

    Attributes:
        cost_per_nfe: of one NFE.
        utility: of the policy.
        best_constant: in words; chosen in hindsight on these very images.
        constant_utility: of the best constant behaviour.
        oracle_utility: of an oracle that knows every image beforehand.
        oracle_nfe: mean NFE of the oracle.
    """

    cost_per_nfe: float
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
        """Utility given away to the oracle; not below 0 but for images that only an odd path reaches."""
        return self.oracle_utility - self.utility


def regret_of(
    utility: np.ndarray, constants: Mapping[str, np.ndarray], oracle: tuple[np.ndarray, np.ndarray], cost_per_nfe: float
) -> Regret:
    """Regret from utilities, image by image.

    Args:
        utility: (P,) of the policy.
        constants: name -> (P,) utilities of a constant behaviour; at least one.
        oracle: (P,) utilities and (P,) NFE of the oracle.
        cost_per_nfe: of one NFE, already taken off the utilities.
    """
    means = {name: float(values.mean()) for name, values in constants.items()}
    best = max(means, key=means.__getitem__)
    return Regret(
        cost_per_nfe, float(utility.mean()), best, means[best], float(oracle[0].mean()), float(oracle[1].mean())
    )


def worth(reward: Reward, preference: np.ndarray, clip_score: np.ndarray, clip_text: np.ndarray) -> np.ndarray:
    """What a reward pays at the end for (P, ...) images of such scores and (P, D) prompts, whatever they cost."""
    flat = np.asarray(preference, dtype=np.float64).reshape(-1)
    known, zero = np.isfinite(flat), np.zeros(len(flat))
    none = np.zeros((len(flat), 0))
    columns = (np.where(known, np.asarray(values, np.float64).reshape(-1), 0.0) for values in (clip_score, flat))
    scores = ImageScores(none, none, *columns, none)
    transition = Transition.of(
        ImageScoresBatch(scores, zero > 0),
        ImageScoresBatch(scores, zero == 0),
        clip_text=np.repeat(clip_text, len(flat) // len(clip_text), axis=0),
        nfe=zero,
        cost_per_nfe=zero,
        action=np.ones(len(flat), int),
        terminal=np.ones(len(flat), bool),
    )
    total, _ = reward(transition)
    return np.where(known, total, -np.inf).reshape(np.shape(preference))


def regret(table: AttemptTable, outcomes: Outcomes, reward: Reward, cost_per_nfe: float) -> Regret:
    """Compares a policy's outcomes on a table with its constant behaviours and its oracle, by the reward's value."""
    values = worth(reward, table.preference, table.clip_score, table.clip_text)
    gained = worth(reward, outcomes.preference, outcomes.clip_score, table.clip_text) - cost_per_nfe * outcomes.nfe
    return regret_of(
        gained, constant_utilities(table, values, cost_per_nfe), oracle(table, values, cost_per_nfe), cost_per_nfe
    )


def oracle(table: AttemptTable, values: np.ndarray, cost_per_nfe: float) -> tuple[np.ndarray, np.ndarray]:
    """(P,) utility and (P,) NFE of one that knows all (P, T, Q) values: it drops other attempts at their first look."""
    finished = slice(table.finish, None)
    first = np.nan_to_num(table.nfe[:, :, 0])
    dropped = np.cumsum(first, axis=1) - first
    spent = (np.nan_to_num(table.nfe[:, :, finished]) + dropped[:, :, None]).reshape(len(table), -1)
    utility = values[:, :, finished].reshape(len(table), -1) - cost_per_nfe * spent
    pick = utility.argmax(1)
    rows = np.arange(len(table))
    return utility[rows, pick], spent[rows, pick]


def constant_utilities(table: AttemptTable, values: np.ndarray, cost_per_nfe: float) -> dict[str, np.ndarray]:
    """In words -> (P,) utility of always finishing at one place, in the first attempt or as the best of n attempts."""
    found = {}
    for place in range(table.finish, values.shape[2]):
        step = place - table.finish - 1
        where = "at the end" if step < 0 else f"by a stop at step {(*table.steps, 0)[step]}"
        for attempts in range(1, table.attempts + 1):
            made, spent = values[:, :attempts, place], table.nfe[:, :attempts, place]
            if np.isfinite(made).all():
                found[f"best of {attempts} {where}"] = made.max(1) - cost_per_nfe * spent.sum(1)
    return found
