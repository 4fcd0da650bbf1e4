"""Training on a table of attempts: a warm start with hundreds of thousands of decisions.

The table holds observations and scores of every attempt of some training images (:mod:`addiffusion_env.tabular.table`).
PPO on it equals PPO on the environment, except that images come from a finite set; the learned weights are copied to
the model that continues on the live environment.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecMonitor

from addiffusion_env.agents.algorithms import make_model
from addiffusion_env.agents.callbacks import pattern_entropy
from addiffusion_env.agents.imitation import Demonstrations, imitate
from addiffusion_env.agents.policy import action_probabilities
from addiffusion_env.agents.recording import LOCAL, record_prompts
from addiffusion_env.envs.settings import EnvSettings, load_backbone, load_scorers
from addiffusion_env.envs.slot import Framer
from addiffusion_env.errors import ConfigError, PromptError
from addiffusion_env.files import write_text
from addiffusion_env.prompts import Prompt
from addiffusion_env.rewards import make_reward
from addiffusion_env.seeding import stable_hash
from addiffusion_env.settings import Ge, Settings
from addiffusion_env.tabular.fit_calibrator import check_fit
from addiffusion_env.tabular.mdp import TabularMDP, Transitions
from addiffusion_env.tabular.outcomes import Decider, Outcomes, play_table, regret
from addiffusion_env.tabular.recorder import check_recordable
from addiffusion_env.tabular.rules import play_rule, rules_of, thresholds_of
from addiffusion_env.tabular.table import AttemptTable
from addiffusion_env.tabular.tabular_env import TabularVecEnv

FRONTIER_COSTS = 8
"""Costs per NFE at which a policy's NFE is measured for ``target_nfe``."""


@dataclass(frozen=True)
class TabularConfig(Settings):
    """Settings of training on a table.

    Attributes:
        images: number of images of the training source that are recorded.
        prompt_seed: selects the prompts.
        attempts: per image; at most one more than the refinements that an episode may take is needed.
        lanes: parallel episodes on the table.
        total_timesteps: number of decisions.
        ppo: keyword arguments of the algorithm on the table.
        watch_every: updates between two measurements of collapse and regret, in TensorBoard under ``table/``.
        held_out: further prompts of the training source, recorded after training to measure what the policy
            spends on prompts that it was not trained on; 0 measures it on the recorded ones, which is optimistic.
        imitate: decisions of the best rules on the table (:mod:`.tabular.rules`) that the policy imitates before it
            learns by itself; 0 begins from random weights.
        shard_size: images per file of the table: at most these are lost by an interruption.
        calibrator: arguments of :meth:`.Calibrator.fit` (``directions``, ``ridge``): fits a calibrator to the recorded
            images, without verdicts, which then ranks attempts and pays for the finished image; ``None`` for none.
    """

    section: ClassVar[str] = "tabular"

    images: Annotated[int, Ge(1)] = 256
    prompt_seed: int = 101
    attempts: Annotated[int, Ge(1)] = 5
    lanes: Annotated[int, Ge(1)] = 128
    total_timesteps: int = 300_000
    ppo: Mapping[str, Any] = field(default_factory=dict)
    watch_every: Annotated[int, Ge(1)] = 10
    held_out: Annotated[int, Ge(0)] = 64
    imitate: Annotated[int, Ge(0)] = 0
    shard_size: Annotated[int, Ge(1)] = 32
    calibrator: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fit(self.calibrator, self.images)


def make_mdp(table: AttemptTable, settings: EnvSettings, refine: bool = True) -> TabularMDP:
    """The decision process of an environment on a table of its attempts.

    Args:
        table: recorded with the environment's process.
        settings: of the environment.
        refine: whether *refine* is ever legal.

    Raises:
        ConfigError: for a process that is not a table of attempts, or differs from the table's.
    """
    backbone = load_backbone(settings)
    process = settings.process(backbone.capabilities, backbone.name)
    check_recordable(process)
    if table.steps != process.decision_steps:
        raise ConfigError(
            f"the table was recorded with decisions at steps {list(table.steps)}, the environment has them at "
            f"{list(process.decision_steps)}",
            "give it the settings that the table was recorded with",
        )
    highest = settings.cost_range()[1]
    most = Framer(backbone, process, load_scorers(backbone, settings.scorers), highest).max_nfe
    limit = min(process.refine.limit, table.attempts - 1)
    recorded = replace(process.refine, limit=limit, enabled=process.refine.enabled and refine)
    transitions = Transitions.of(backbone, replace(process, refine=recorded))
    return TabularMDP(table, transitions, most, highest, process.refine.limit, process.refine.utility)


def record_table(
    settings: EnvSettings, tabular: TabularConfig, folder: Path, lanes: int, rollouts: Mapping[str, Any] = LOCAL
) -> AttemptTable:
    """Records the images of a run, or loads recorded ones; see :func:`.record_prompts`.

    Raises:
        ConfigError: for a process that is not a table of attempts.
        RunFolderError: when a shard cannot be written.
    """
    prompts = settings.prompt_source().take(tabular.images, seed=tabular.prompt_seed)
    return record_prompts(prompts, settings, tabular.attempts, folder, lanes, tabular.shard_size, rollouts)


def held_out_prompts(settings: EnvSettings, tabular: TabularConfig, seen: Collection[str] = ()) -> list[Prompt]:
    """Prompts of the training source that are not on the table; at most ``tabular.held_out``, always the same ones.

    Args:
        settings: of the training environment.
        tabular: of its table.
        seen: ids of prompts used by live episodes, which are excluded too.

    Returns:
        Fewer than requested if the source holds no more; none if it cannot even fill the table.
    """
    source = settings.prompt_source()
    trained = {prompt.prompt_id for prompt in source.take(tabular.images, seed=tabular.prompt_seed)}
    wider: list[Prompt] = []
    for replaced in sorted({len(seen), 0}, reverse=True):
        with suppress(PromptError):  # an exhausted grammar; lists return what they have
            wider = wider or source.take(tabular.images + tabular.held_out + replaced, seed=tabular.prompt_seed)
    unseen = [prompt for prompt in wider if prompt.prompt_id not in trained and prompt.prompt_id not in seen]
    # The larger draw of a list may hold more than requested, in the order of its file, perhaps sorted by kind.
    drawn = sorted(unseen, key=lambda prompt: stable_hash("held out", prompt.prompt_id))[: tabular.held_out]
    chosen = {prompt.prompt_id for prompt in drawn}
    return [prompt for prompt in unseen if prompt.prompt_id in chosen]


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
    policy: BasePolicy,
    mdp: TabularMDP,
    settings: EnvSettings,
    tabular: TabularConfig,
    folder: Path,
    lanes: int,
    seen: Collection[str] = (),
    rollouts: Mapping[str, Any] = LOCAL,
) -> tuple[list[tuple[float, float]], str]:
    """:func:`measured_frontier` on prompts that the policy was not trained on, and a description of these prompts.

    A warning is issued when the training source holds fewer such prompts than requested.

    Args:
        policy: trained on ``mdp``.
        mdp: the decision process on the training table; used for measuring when no prompt is held out.
        settings: of the environment.
        tabular: holds the number of held-out prompts.
        folder: of the run; the table goes to ``held_out`` in it.
        lanes: images in progress at once.
        seen: ids of prompts used by live episodes.
        rollouts: where they are recorded.

    Raises:
        RunFolderError: when the table cannot be written.
    """
    prompts = held_out_prompts(settings, tabular, seen) if tabular.held_out else []
    if len(prompts) < tabular.held_out:
        warnings.warn(
            f"tabular.held_out={tabular.held_out}: the training source holds {len(prompts)} prompts that were not "
            f"trained on; the frontier of target_nfe is measured on {'those' if prompts else 'the training prompts'}",
            stacklevel=2,
        )
    if not prompts:
        return measured_frontier(policy, mdp, settings), f"{len(mdp.table)} training prompts"
    held_out = folder / "held_out"
    table = record_prompts(prompts, settings, tabular.attempts, held_out, lanes, tabular.shard_size, rollouts)
    words = f"{len(table)} prompts of the training source that were held out of training"
    return measured_frontier(policy, make_mdp(table, settings), settings), words


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
    if tabular.imitate:
        played = [play_rule(mdp, rule) for rule in rules_of(mdp, thresholds_of(mdp))]
        shown = Demonstrations(TabularVecEnv(mdp, settings, tabular.lanes, seed + 1), played, tabular.imitate)
        same = imitate(learner, shown, seed=seed)
        print(f"imitated {len(shown)} decisions of the best rules: {same:.1%} of the actions agree", flush=True)
    watch = TableWatch(mdp, settings, tabular.watch_every)
    if folder is not None:
        learner.set_logger(configure(str(folder / "tensorboard" / "table"), ["tensorboard"]))
    learner.learn(tabular.total_timesteps, callback=watch)
    if folder is not None:
        write_text(folder / "table.json", json.dumps(watch.history, indent=1))
    return learner


class TableWatch(BaseCallback):
    """Monitors a policy on its table at the middle cost per NFE: NFE, utility, collapse and regret.

    Args:
        mdp: the decision process on the table.
        settings: of the environment.
        every: updates between two measurements.

    Attributes:
        history: results of each measurement, with the number of decisions before it.
    """

    def __init__(self, mdp: TabularMDP, settings: EnvSettings, every: int) -> None:
        super().__init__()
        self.mdp, self.settings, self.every = mdp, settings, every
        self.observer = mdp.table.observer(settings.keys())
        self.reward = make_reward(settings.reward)
        self.rollouts = 0
        self.history: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.rollouts += 1
        if self.rollouts % self.every == 1:
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
