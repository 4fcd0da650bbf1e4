"""A warm start: imitate a plain rule first, so that PPO begins where a person would and improves from there.

The rule is *retry while the preview scores low, land early where the prompt asks for nothing fine*. It sees what the
policy sees (preference of the preview, step, refinements, price, the prompt's words), never the judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecMonitor

from addiffusion_env.engine.process import Action
from addiffusion_env.errors import check_settings
from addiffusion_env.settings import check_types


@dataclass(frozen=True)
class WarmStart:
    """The rule, and how long to imitate it.

    Attributes:
        decisions: how many decisions to collect under the rule.
        epochs: passes over them.
        learning_rate: of the imitation.
        check_from: first step of the schedule at which a low score means *refine*.
        threshold: preference below which to refine, at price 0.
        threshold_slope: how much lower the threshold is per unit of price.
        land_at: step at which to stop when the prompt has none of ``fine_words``; ``None`` for never.
        fine_words: words that need the full schedule.
        explore: share of decisions taken at random, so that the imitation knows what lies beside the rule's path.
    """

    decisions: int = 1024
    epochs: int = 20
    learning_rate: float = 1e-3
    check_from: int = 4
    threshold: float = 0.0
    threshold_slope: float = 0.0
    land_at: int | None = None
    fine_words: tuple[str, ...] = ()
    explore: float = 0.1

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> WarmStart:
        """Builds it from configuration.

        Raises:
            ConfigError: for an unknown key, with the nearest one, or a value of another type.
        """
        check_settings("warm_start has", settings, (item.name for item in fields(cls)))
        check_types("warm_start.", made := cls(**settings))
        return replace(made, fine_words=tuple(made.fine_words))

    def action(self, info: Mapping[str, Any], mask: np.ndarray) -> int:
        """What the rule does."""
        plain = not any(word in self.fine_words for word in str(info["prompt"]).split())
        threshold = self.threshold - self.threshold_slope * float(info["price"])
        low = info.get("has_look") and info["preference"] < threshold
        if low and info["step"] >= self.check_from and mask[Action.REFINE]:
            return int(Action.REFINE)
        if plain and self.land_at is not None and info["step"] >= self.land_at:
            return int(Action.STOP)
        return int(Action.CONTINUE)


@dataclass(frozen=True)
class Demonstrations:
    """What the rule did.

    Attributes:
        observations: key -> (N, dim).
        actions: (N,) the rule's action at each, whatever was taken.
        masks: (N, 3) legal actions.
        returns: (N,) reward to the end of the episode; NaN where the episode had not ended.
    """

    observations: dict[str, np.ndarray]
    actions: np.ndarray
    masks: np.ndarray
    returns: np.ndarray


def collect(env: VecMonitor, rule: WarmStart, seed: int) -> Demonstrations:
    """Plays the rule; goes on from where the environments are, or resets them."""
    rng = np.random.default_rng([seed, 77])
    observation: Any = env.reset()
    infos: list[Mapping[str, Any]] = list(env.venv.reset_infos)
    rows: list[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for _ in range(max(1, rule.decisions // env.num_envs)):
        masks = np.stack(env.env_method("action_masks"))
        wanted = np.array([rule.action(info, mask) for info, mask in zip(infos, masks, strict=True)])
        taken = wanted.copy()
        for lane in np.flatnonzero(rng.random(env.num_envs) < rule.explore):
            taken[lane] = rng.choice(np.flatnonzero(masks[lane]))
        following, rewards, dones, stepped = env.step(taken)
        # At an episode's end SB3 reports the old episode; the rule needs what the new one begins with.
        infos = [env.venv.reset_infos[lane] if done else stepped[lane] for lane, done in enumerate(dones)]
        rows.append((observation, wanted, masks, rewards, dones))
        observation = following
    return _demonstrations(rows)


def _demonstrations(rows: Sequence[tuple[Any, ...]]) -> Demonstrations:
    """Stacks what was played and sums rewards backwards."""
    returns = np.zeros((len(rows), len(rows[0][1])))
    ahead = np.full(returns.shape[1], np.nan)
    for step in reversed(range(len(rows))):
        *_, rewards, dones = rows[step]
        ahead = np.where(dones, 0.0, ahead) + rewards
        returns[step] = ahead
    observations = {key: np.concatenate([row[0][key] for row in rows]) for key in rows[0][0]}
    actions, masks = (np.concatenate([row[place] for row in rows]) for place in (1, 2))
    return Demonstrations(observations, actions, masks, returns.reshape(-1))


def imitate(policy: ActorCriticPolicy, shown: Demonstrations, rule: WarmStart, seed: int, batch: int = 128) -> float:
    """Fits policy (cross-entropy) and value (squared error) to the demonstrations; returns the last accuracy."""
    generator = torch.Generator().manual_seed(seed)
    observations = {key: torch.as_tensor(value) for key, value in shown.observations.items()}
    actions, returns = torch.as_tensor(shown.actions), torch.as_tensor(shown.returns, dtype=torch.float32)
    known = ~torch.isnan(returns)
    optimizer = torch.optim.Adam(policy.parameters(), lr=rule.learning_rate)
    right = 0.0
    policy.set_training_mode(True)
    for _ in range(rule.epochs):
        hits = 0
        for rows in torch.randperm(len(actions), generator=generator).split(batch):
            part = {key: value[rows].to(policy.device) for key, value in observations.items()}
            distribution = policy.get_distribution(part).distribution
            logits = distribution.logits  # type: ignore[union-attr]
            values = policy.predict_values(part).flatten()
            wanted = actions[rows].to(policy.device)
            loss = torch.nn.functional.cross_entropy(logits, wanted)
            has = known[rows].to(policy.device)
            if bool(has.any()):
                loss = loss + torch.nn.functional.mse_loss(values[has], returns[rows].to(policy.device)[has])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            hits += int((logits.argmax(1) == wanted).sum())
        right = hits / len(actions)
    policy.set_training_mode(False)
    return right


def warm_start(model: BaseAlgorithm, env: VecMonitor, settings: Mapping[str, Any], seed: int) -> float:
    """Collects the rule's play and imitates it; returns the share of decisions that the policy then takes alike."""
    rule = WarmStart.of(settings)
    shown = collect(env, rule, seed)
    assert isinstance(model.policy, ActorCriticPolicy) or hasattr(model.policy, "get_distribution")
    return imitate(model.policy, shown, rule, seed)  # type: ignore[arg-type]
