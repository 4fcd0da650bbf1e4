"""Stages of a training on a table, each of which a resumed run does not repeat: the calibrator and the policy."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from addiffusion_env.agents.calibrator_file import named_calibrators
from addiffusion_env.agents.checkpoints import plain_copy, rng_state, set_rng_state
from addiffusion_env.agents.tabular_training import TabularConfig, learn_on_table, record_table
from addiffusion_env.backbones.fingerprint import digest_of
from addiffusion_env.backbones.identity import described
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import ConfigError
from addiffusion_env.files import whole_file
from addiffusion_env.tabular.fit_calibrator import fit_calibrator
from addiffusion_env.tabular.mdp import TabularMDP
from addiffusion_env.tabular.recorder import recorder_of

LOG_ODDS = {"centre": 0.0, "width": 2.0}
"""Terminal bonus on a calibrator's log-odds: halved, so that probabilities of .99 and .999 still differ."""


def with_calibrator(
    environment: Mapping[str, Any],
    tabular: TabularConfig | None,
    folder: Path,
    lanes: int,
    rollouts: Mapping[str, Any],
) -> dict[str, Any]:
    """Environment settings that use the calibrator of this run, which is fitted first where that was not done.

    Records the run's table, if necessary, and fits a calibrator to it as ``tabular.calibrator`` says. The calibrator is
    written to ``calibrator`` in the run's folder, under a name that changes with the recorded attempts and the settings
    of the fit, and read by the refinement (which attempt is best) and by the reward's terminal bonus.

    Args:
        environment: settings of the environment, without a calibrator.
        tabular: settings of the table; without ``calibrator`` the environment is returned unchanged.
        folder: of the run; its table is in ``table``.
        lanes: images in progress at once.
        rollouts: where the attempts are recorded; see :func:`.record_prompts`.

    Raises:
        ConfigError: when the environment names a calibrator already.
        RunFolderError: when a file cannot be written.
    """
    if tabular is None or tabular.calibrator is None:
        return dict(environment)
    if known := named_calibrators(environment):
        raise ConfigError(
            f"tabular.calibrator fits a calibrator, and the environment uses {known[0]!r} already",
            "set tabular.calibrator=null, or take the calibrator out of env.refine and env.reward",
        )
    settings = EnvSettings.of(**environment)
    prompts = settings.prompt_source().take(tabular.images, seed=tabular.prompt_seed)
    made_from = [
        recorder_of(settings, tabular.attempts).fingerprint,
        [described(prompt) for prompt in prompts],
        dict(tabular.calibrator),
    ]
    path = folder / "calibrator" / f"{digest_of(made_from)[:12]}.safetensors"
    if not path.is_file():
        table = record_table(settings, tabular, folder / "table", lanes, rollouts)
        path.parent.mkdir(exist_ok=True)
        fit_calibrator(table, **tabular.calibrator).save(path)
        print(f"fitted a calibrator to {len(table)} prompts, {table.attempts} attempts each: {path}", flush=True)
    refine, reward = environment.get("refine", "as_published"), environment.get("reward", "default")
    refine = dict(refine) if isinstance(refine, Mapping) else {"preset": refine}
    reward = dict(reward) if isinstance(reward, Mapping) else {"preset": reward}
    bonus = reward.get("terminal_bonus", {})
    bonus = dict(bonus) if isinstance(bonus, Mapping) else {"weight": bonus}
    refine["utility"] = {"calibrator": str(path)}
    reward["terminal_bonus"] = {**LOG_ODDS, **bonus, "calibrator": str(path)}
    return {**environment, "refine": refine, "reward": reward}


def train_on_table(
    model: BaseAlgorithm,
    mdp: TabularMDP,
    settings: EnvSettings,
    tabular: TabularConfig,
    algorithm: str,
    seed: int,
    folder: Path,
    device: str = "auto",
) -> None:
    """Trains on the table and copies the weights into ``model``; a run that finished this before reads them.

    The weights are in ``table_policy`` in the run's folder, with the state of the random generators afterwards, so that
    a resumed run continues as if uninterrupted.

    Args:
        model: the agent of the live environment.
        mdp: the decision process on the table.
        settings: of the environment.
        tabular: settings of the training.
        algorithm: its name.
        seed: of the networks and of the draws.
        folder: of the run.
        device: of the policy network.

    Raises:
        RunFolderError: when the weights cannot be written.
    """
    made_from = [
        mdp.table.identity,
        [mdp.table.prompt_ids, mdp.table.seeds.tolist()],
        described({"process": mdp.transitions, "utility": mdp.utility, "reward": settings.reward}),
        [settings.keys(), settings.cost_range()],
        json.loads(json.dumps(asdict(tabular), default=str)),
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
