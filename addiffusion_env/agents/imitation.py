"""Imitation of the best rule on a table, where learning begins: behaviour cloning of its actions and of its returns.

PPO then starts from what the best rule reaches, and improves on it where an observation tells more than a threshold on
one score (Pomerleau 1991, doi:10.1162/neco.1991.3.1.88; as a start for reinforcement learning: Rajeswaran et al. 2018,
arXiv:1709.10087).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.base_class import BaseAlgorithm
from torch.nn import functional as F

from addiffusion_env.tabular.rules import RuleOutcomes, best_rule, rule_actions
from addiffusion_env.tabular.tabular_env import TabularVecEnv

COSTS = 16
"""Costs per NFE for which a best rule is chosen; an episode follows that of the nearest one."""


class Demonstrations:
    """Decisions of the best rules, with the return that followed each.

    Args:
        env: the environment to play in; each episode is played by the best rule at its cost per NFE.
        played: rules and what they gave on the same table.
        decisions: how many to collect at least, those of unfinished episodes excluded.

    Attributes:
        observations: key -> (N, width) float32.
        actions: (N,) int64.
        masks: (N, 3) bool, legal actions.
        returns: (N,) float32, sum of the rewards from this decision to the end of its episode.
    """

    def __init__(self, env: TabularVecEnv, played: Sequence[RuleOutcomes], decisions: int) -> None:
        low, high = env.costs_per_nfe
        costs = np.linspace(low, high, COSTS)
        rules = [best_rule(played, cost).rule for cost in costs]
        seen: list[Any] = [env.reset()]  # dicts; step() has SB3's type, which allows arrays and tuples
        steps: list[tuple[np.ndarray, ...]] = []
        while len(steps) * env.num_envs < decisions or not np.any([done for *_, done in steps], axis=0).all():
            states = env.states
            nearest = np.abs(states.cost_per_nfe[:, None] - costs).argmin(1)
            chosen = np.zeros(env.num_envs, dtype=np.int64)
            for index in np.unique(nearest):
                here = nearest == index
                chosen[here] = rule_actions(rules[index], env.mdp, states)[here]
            legal = env.action_masks()
            observation, reward, done, _ = env.step(chosen)
            seen.append(observation)
            steps.append((chosen, legal, reward, done))
        taken, masks, rewards, ends = map(np.stack, zip(*steps, strict=True))
        whole, returns = _returns(rewards, ends)
        self.observations = {key: np.stack([one[key] for one in seen[:-1]])[whole] for key in seen[0]}
        self.actions, self.masks, self.returns = taken[whole], masks[whole], returns[whole].astype(np.float32)

    def __len__(self) -> int:
        return len(self.actions)


def _returns(rewards: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(T, B) whether the episode of a decision ended, and its return without discount, from (T, B) rewards and ends."""
    whole, returns = np.zeros(ends.shape, bool), np.zeros(ends.shape)
    ended, following = np.zeros(ends.shape[1], bool), np.zeros(ends.shape[1])
    for step in reversed(range(len(ends))):
        ended = ended | ends[step]
        following = rewards[step] + np.where(ends[step], 0.0, following)
        whole[step], returns[step] = ended, following
    return whole, returns


def imitate(
    learner: BaseAlgorithm,
    shown: Demonstrations,
    epochs: int = 6,
    batch_size: int = 512,
    seed: int = 0,
) -> float:
    """Fits a policy to demonstrations: the actions by cross-entropy, the value function by squared error.

    Args:
        learner: its policy is changed in place.
        shown: decisions to imitate.
        epochs: passes over them.
        batch_size: decisions per gradient step.
        seed: of the order of the batches.

    Returns:
        The share of actions that the policy takes as shown, over the last epoch.
    """
    policy = learner.policy
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    tensors = {key: torch.from_numpy(value).to(policy.device) for key, value in shown.observations.items()}
    actions, returns = (torch.from_numpy(value).to(policy.device) for value in (shown.actions, shown.returns))
    rng, same = np.random.default_rng([seed, 912]), 0.0
    for _ in range(epochs):
        same = 0.0
        for batch in np.array_split(rng.permutation(len(shown)), max(1, len(shown) // batch_size)):
            at = torch.from_numpy(batch).to(policy.device)
            observation = {key: value[at] for key, value in tensors.items()}
            masks = {"action_masks": shown.masks[batch]} if isinstance(learner, MaskablePPO) else {}
            values, log_prob, _ = policy.evaluate_actions(observation, actions[at], **masks)  # type: ignore[operator]
            loss = -log_prob.mean() + 0.5 * F.mse_loss(values.flatten(), returns[at])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
            optimizer.step()
            same += float((log_prob > np.log(0.5)).float().sum())
    return same / len(shown)
