"""Trains a policy with Stable-Baselines3: configuration -> environments -> algorithm -> policy -> report.

python train_sb3.py                             the default experiment on the embedded emoji world
python train_sb3.py experiment=smoke            every part once, in a minute
python train_sb3.py lanes=8 ppo.ent_coef=0.01   any key of configs/train.yaml
python train_sb3.py experiment=dqn              another algorithm of Stable-Baselines3 or sb3-contrib, or your own class
python train_sb3.py rollouts=ray rollouts.workers=4   lanes in four Ray actors, here or on a cluster
python train_sb3.py --plan                      what every stage costs on this machine, instead of running it
python train_sb3.py experiment=sweep            Optuna over PPO's settings
Run the same command again to go on after an interruption.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from addiffusion_env.config import dotted_values, friendly, renamed, run_script, version_base
from addiffusion_env.plugins import with_plugins

CONFIGS = Path(__file__).parent / "configs"


def train(config: dict[str, Any], overrides: Iterable[str] = ()) -> tuple[Path, float]:
    """Trains and saves the policy; returns the run's folder and its last return, which a sweep maximises.

    Args:
        config: the keys of ``configs/train.yaml``.
        overrides: which of them were given on the command line, and must therefore take effect.
    """
    from addiffusion_env.agents.algorithms import log_interval
    from addiffusion_env.agents.callbacks import Checkpointer, EpisodeLog
    from addiffusion_env.agents.factory import make_rollouts
    from addiffusion_env.agents.recording import Recording
    from addiffusion_env.agents.tabular_training import held_out_frontier, make_mdp, train_on_table
    from addiffusion_env.agents.training import (
        TrainingConfig,
        algorithm_and_table,
        export_policy,
        exported_at,
        has_begun,
        hold_to_identity,
        last_return,
        remember_config,
        resume_or_make,
        run_folder,
    )
    from addiffusion_env.engine.lanes import lanes_of
    from addiffusion_env.errors import ResumeError
    from addiffusion_env.files import writing_to
    from eval_sb3 import check_report

    started = time.monotonic()
    config = with_plugins(renamed(config), [config["run_dir"]] if config["resume"] == "auto" else [])
    check_report(config["report"], str(config["run_dir"]))  # now, not after minutes of training
    TrainingConfig.of(config)
    algorithm = config["algorithm"]
    chosen, tabular = algorithm_and_table(config, overrides)
    resume = config["resume"] == "auto"
    folder = run_folder(config["run_dir"])
    if not resume and has_begun(folder):
        raise ResumeError(
            f"{folder} holds a run and resume={config['resume']}",
            "choose another run_dir, use resume=auto, or delete the folder",
        )
    remember_config(folder, config, resume)

    lanes, halve = lanes_of(config["lanes"])
    told = {**config["env"], "max_faults": config["max_faults"], "halve_lanes": halve}
    recording = None
    if tabular is not None:
        recording = Recording(told, tabular, folder, lanes, config["rollouts"]).with_calibrator()
        told = dict(recording.environment)
    live = config["rollouts"] if config["total_timesteps"] else {"kind": "local"}
    env = make_rollouts(live, lanes, config["seed"], told)
    identity = hold_to_identity(folder, env, resume)
    model, state = resume_or_make(algorithm, env, chosen, config["seed"], config["device"], folder, resume)
    mdp = None
    if recording is not None:
        mdp = make_mdp(recording.table(), recording.settings)
        if state is None:
            train_on_table(model, mdp, recording, algorithm, config["seed"], config["device"])
    begun = "training from" if state is None else "resumed at"
    print(f"{begun} decision {model.num_timesteps} of {config['total_timesteps']}")
    print(f"TensorBoard: tensorboard --logdir {folder / 'tensorboard'}", flush=True)

    log = EpisodeLog(dotted_values(config))
    log.restore(state)
    checkpointer = Checkpointer(folder / "checkpoints", config["checkpoint_every"], log)
    remaining = config["total_timesteps"] - model.num_timesteps
    if remaining > 0:
        try:
            bar = config["progress_bar"]
            with writing_to(folder):
                every = log_interval(model)
                model.learn(remaining, [log, checkpointer], every, reset_num_timesteps=False, progress_bar=bar)
        except (Exception, SystemExit):  # a SLURM launcher ends a job that runs out of time by SystemExit
            checkpointer.rescue()
            raise
    env.close()
    if checkpointer.stopped and checkpointer.interrupted is not None:
        raise SystemExit(128 + checkpointer.interrupted)
    policy = folder / "policy"
    if remaining > 0 or exported_at(policy) != model.num_timesteps:  # the last run may have been killed in between
        measured = log.frontier(), "episodes of the training itself"
        if mdp is not None and recording is not None:
            measured = held_out_frontier(model.policy, mdp, recording, log.prompt_ids)
        kept = {key: value for key, value in told.items() if key not in ("max_faults", "halve_lanes")}
        export_policy(policy, model, {**config, "env": kept}, *measured, identity)
    print(f"trained in {time.monotonic() - started:.0f} s; policy: {policy}", flush=True)
    return folder, last_return(model)


def report(folder: Path, config: dict[str, Any]) -> None:
    """Plays the policy and fixed-step comparators on test prompts and writes the report."""
    from eval_sb3 import evaluate_run

    evaluate_run(folder, config["report"], max_lanes=config["lanes"], rollouts=config["rollouts"])


@hydra.main(**version_base(), config_path="configs", config_name="train")
@friendly
def main(config: DictConfig) -> float:
    """Hydra's entry."""
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    if plain["plan"]:
        from addiffusion_env.evaluation.training_cost import training_cost

        print(training_cost(with_plugins(plain)).table())
        return 0.0
    folder, score = train(plain, HydraConfig.get().overrides.task if HydraConfig.initialized() else ())
    if plain["report"] is not None:
        report(folder, plain)
    return score


if __name__ == "__main__":
    run_script(main, CONFIGS, "train")
