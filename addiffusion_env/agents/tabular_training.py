"""Training on a table of attempts: a warm start with hundreds of thousands of decisions.

The table holds observations and scores of every attempt of some training images (:mod:`addiffusion_env.tabular.table`).
PPO on it equals PPO on the environment, except that images come from a finite set; the learned weights are copied to
the model that continues on the live environment.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecMonitor
from torch import nn

from addiffusion_env.agents.algorithms import make_model
from addiffusion_env.agents.callbacks import pattern_entropy
from addiffusion_env.agents.checkpoints import rng_state, set_rng_state
from addiffusion_env.agents.imitation import Demonstrations, imitate
from addiffusion_env.agents.policy import action_probabilities
from addiffusion_env.agents.recording import PROMPT_SEED, Recording, TabularConfig
from addiffusion_env.backbones.fingerprint import digest_of
from addiffusion_env.backbones.identity import described
from addiffusion_env.envs.settings import EnvSettings, load_backbone, load_scorers
from addiffusion_env.envs.slot import Framer, plain_copy
from addiffusion_env.errors import ConfigError
from addiffusion_env.files import whole_file, write_text
from addiffusion_env.rewards import make_reward
from addiffusion_env.tabular.mdp import TabularMDP, Transitions
from addiffusion_env.tabular.outcomes import Decider, Outcomes, play_table, regret
from addiffusion_env.tabular.recorder import check_recordable
from addiffusion_env.tabular.rules import play_rule, rules_of, thresholds_of
from addiffusion_env.tabular.table import AttemptTable
from addiffusion_env.tabular.tabular_env import TabularVecEnv

FRONTIER_COSTS = 8
"""Costs per NFE at which a policy's NFE is measured for ``target_nfe``."""

SMALL_NETWORK = 2**20
"""Number of weights up to which a policy is trained on its table in one thread."""


WATCH_EVERY = 10
"""Updates between two measurements of the policy on its table."""


def make_mdp(table: AttemptTable, settings: EnvSettings) -> TabularMDP:
    """The decision process of an environment on a table of its attempts.

    Args:
        table: recorded with the environment's process.
        settings: of the environment.

    Raises:
        ConfigError: for a process that is not a table of attempts, or differs from the table's.
    """
    backbone = load_backbone(settings)
    process = settings.process(backbone.capabilities, backbone.name).counted(backbone)
    check_recordable(process)
    if table.steps != process.decision_steps:
        raise ConfigError(
            f"the table was recorded with decisions at steps {list(table.steps)}, the environment has them at "
            f"{list(process.decision_steps)}",
            "give it the settings that the table was recorded with",
        )
    highest = settings.cost_range()[1]
    most = Framer(backbone, process, load_scorers(backbone, settings.scorers), highest).max_nfe
    recorded = replace(process.refine, limit=min(process.refine.limit, table.attempts - 1))
    transitions = Transitions.of(backbone, replace(process, refine=recorded))
    return TabularMDP(table, transitions, most, highest, process.refine.limit, process.refine.utility)


def greedy(policy: BasePolicy) -> Decider:
    """The most probable legal action, as :class:`agents.learned.PolicySampler` decides.

    Raises:
        ConfigError: for a policy with a memory, which a table does not keep.
    """
    if isinstance(policy, RecurrentActorCriticPolicy):
        raise ConfigError("a policy with a memory cannot be played on a table", "evaluate it: eval_sb3.py policy=RUN")

    def decide(observation: dict[str, np.ndarray], legal: np.ndarray) -> np.ndarray:
        probabilities, _ = action_probabilities(policy, observation, legal, [None] * len(legal))
        return np.where(legal, probabilities, -1.0).argmax(1)

    return decide


def measured_frontier(policy: BasePolicy, mdp: TabularMDP, settings: EnvSettings) -> list[tuple[float, float]]:
    """(cost per NFE, mean NFE) of a policy on a table, by increasing cost per NFE; NFE never increases."""
    low, high = settings.cost_range()
    observer = mdp.table.observer(settings.keys())
    costs_per_nfe = np.linspace(low, high, FRONTIER_COSTS) if low < high else np.array([low])
    spent = [
        float(play_table(mdp, greedy(policy), observer, cost_per_nfe).nfe.mean()) for cost_per_nfe in costs_per_nfe
    ]
    return [
        (float(cost_per_nfe), float(nfe))
        for cost_per_nfe, nfe in zip(costs_per_nfe, np.minimum.accumulate(spent), strict=True)
    ]


def held_out_frontier(
    policy: BasePolicy, mdp: TabularMDP, recording: Recording, seen: Container[str] = ()
) -> tuple[list[tuple[float, float]], str]:
    """:func:`measured_frontier` on prompts that the policy was not trained on, and a description of these prompts.

    A warning is issued when the training source holds fewer such prompts than requested.

    Args:
        policy: trained on ``mdp``.
        mdp: the decision process on the training table; used for measuring when no prompt is held out.
        recording: of the run; the held-out prompts go to ``held_out`` in its folder.
        seen: ids of prompts used by live episodes.

    Raises:
        RunFolderError: when the table cannot be written.
    """
    settings, wanted = recording.settings, recording.tabular.held_out
    prompts = recording.held_out_prompts(seen)
    if len(prompts) < wanted:
        warnings.warn(
            f"tabular.held_out={wanted}: the training source holds {len(prompts)} prompts that were not trained on; "
            f"the frontier of target_nfe is measured on {'those' if prompts else 'the training prompts'}",
            stacklevel=2,
        )
    if not prompts:
        return measured_frontier(policy, mdp, settings), f"{len(mdp.table)} training prompts"
    table = recording.record(prompts, "held_out")
    words = f"{len(table)} prompts of the training source that were held out of training"
    return measured_frontier(policy, make_mdp(table, settings), settings), words


def train_on_table(
    model: BaseAlgorithm, mdp: TabularMDP, recording: Recording, algorithm: str, seed: int, device: str = "auto"
) -> None:
    """Trains on the table and copies the weights into ``model``; a run that finished this before reads them.

    The weights are in ``table_policy`` in the run's folder, with the state of the random generators afterwards, so that
    a resumed run continues as if uninterrupted.

    Args:
        model: the agent of the live environment.
        mdp: the decision process on the table.
        recording: of the run.
        algorithm: its name.
        seed: of the networks and of the draws.
        device: of the policy network.

    Raises:
        RunFolderError: when the weights cannot be written.
    """
    settings, tabular, folder = recording.settings, recording.tabular, recording.folder
    made_from = [
        mdp.table.identity,
        [mdp.table.prompt_ids, mdp.table.seeds.tolist()],
        described({"process": mdp.transitions, "utility": mdp.utility, "reward": settings.reward}),
        [settings.keys(), settings.cost_range()],
        # Two constants that were settings once, so that weights of former runs are found.
        json.loads(
            json.dumps({"prompt_seed": PROMPT_SEED, "watch_every": WATCH_EVERY, **asdict(tabular)}, default=str)
        ),
        [algorithm, seed],
    ]
    path = folder / "table_policy" / f"{digest_of(made_from)[:12]}.pt"
    state = _read(path)
    if state is None:
        learner = learn_on_table(mdp, settings, tabular, algorithm, seed, folder, device)
        state = {"policy": plain_copy(learner.policy.state_dict()), "rng": rng_state()}
        path.parent.mkdir(exist_ok=True)
        with whole_file(path) as file:
            torch.save(state, file)
        print(f"trained on the table for {tabular.total_timesteps} decisions", flush=True)
    else:
        print(f"trained on the table before: {path}", flush=True)
    model.policy.load_state_dict(state["policy"])
    set_rng_state(state["rng"])


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except Exception as error:  # whatever a damaged file raises: an hour of decisions is made again
        warnings.warn(
            f"{path} cannot be read ({type(error).__name__}: {error}); training on the table again", stacklevel=2
        )
        return None


def learn_on_table(
    mdp: TabularMDP,
    settings: EnvSettings,
    tabular: TabularConfig,
    algorithm: str,
    seed: int,
    folder: Path | None = None,
    device: str = "auto",
) -> BaseAlgorithm:
    """Runs the algorithm on a table.

    Args:
        mdp: the decision process on the recorded table.
        settings: of the environment.
        tabular: training settings.
        algorithm: name of one that :func:`.table_settings` accepts.
        seed: of the networks and of the draws.
        folder: TensorBoard files go to ``tensorboard/table`` in it, the monitored values to ``table.json``; ``None``
            for neither.
        device: of the policy network.

    Returns:
        The agent; its policy fits the live environment of the same settings.
    """
    env = VecMonitor(TabularVecEnv(mdp, settings, tabular.lanes, seed))
    learner = make_model(algorithm, env, tabular.ppo, seed, device)
    watch = TableWatch(mdp, settings)
    if folder is not None:
        learner.set_logger(configure(str(folder / "tensorboard" / "table"), ["tensorboard"]))
    with few_threads(learner.policy):
        if tabular.imitate:
            played = [play_rule(mdp, rule) for rule in rules_of(mdp, thresholds_of(mdp))]
            shown = Demonstrations(TabularVecEnv(mdp, settings, tabular.lanes, seed + 1), played, tabular.imitate)
            same = imitate(learner, shown, seed=seed)
            print(f"imitated {len(shown)} decisions of the best rules: {same:.1%} of the actions agree", flush=True)
        learner.learn(tabular.total_timesteps, callback=watch)
    if folder is not None:
        write_text(folder / "table.json", json.dumps(watch.history, indent=1))
    return learner


@contextmanager
def few_threads(policy: nn.Module) -> Iterator[None]:
    """Context manager: one torch thread for a small network, whose sums are shorter than the waiting of threads."""
    threads = torch.get_num_threads()
    if sum(value.numel() for value in policy.parameters()) < SMALL_NETWORK:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class TableWatch(BaseCallback):
    """Monitors a policy on its table at the middle cost per NFE: NFE, utility, collapse and regret.

    Args:
        mdp: the decision process on the table.
        settings: of the environment.

    Attributes:
        history: results of each measurement, with the number of decisions before it.
    """

    def __init__(self, mdp: TabularMDP, settings: EnvSettings) -> None:
        super().__init__()
        self.mdp, self.settings = mdp, settings
        self.observer = mdp.table.observer(settings.keys())
        self.reward = make_reward(settings.reward)
        self.rollouts = 0
        self.history: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.rollouts += 1
        if self.rollouts % WATCH_EVERY == 1:
            self.scores()

    def _on_training_end(self) -> None:
        self.scores()
        self.logger.dump(self.num_timesteps)

    def scores(self) -> None:
        """Runs the greedy policy on every image at the middle cost per NFE and records the results."""
        cost_per_nfe = float(np.mean(self.settings.cost_range()))
        outcomes = play_table(self.mdp, greedy(self.model.policy), self.observer, cost_per_nfe)
        found = regret(self.mdp.table, outcomes, self.reward, cost_per_nfe)
        figures = {
            **summary(outcomes),
            "utility": found.utility,
            "regret_to_constant": found.to_constant,
            "regret_to_oracle": found.to_oracle,
        }
        for name, value in figures.items():
            self.logger.record(f"table/{name}", value)
        self.history.append({"decisions": float(self.num_timesteps), **figures})


def summary(outcomes: Outcomes) -> dict[str, float]:
    """Means of a policy's outcomes, and how uniform its behaviour is over images."""
    kinds = Counter(outcomes.actions)
    return {
        "nfe": float(outcomes.nfe.mean()),
        "preference": float(outcomes.preference.mean()),
        "pattern_entropy": pattern_entropy(list(outcomes.actions)),
        "constant_share": kinds.most_common(1)[0][1] / len(outcomes.actions),
    }
