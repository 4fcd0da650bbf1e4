"""Evaluates a policy beside samplers without learning: images -> judges -> records -> report.

python eval_sb3.py                                   samplers without learning, on 128 test prompts
python eval_sb3.py policy=runs/emoji                 a trained policy beside them
python eval_sb3.py benchmark=geneval backbone=emoji  on a public benchmark; benchmark_path= says where its files are
python eval_sb3.py experiment=hypotheses             H1 to H4, each supported, not supported or inconclusive
python eval_sb3.py policy=runs/emoji prompts=1024 'samplers=[fixed:8,fixed:20,"prompt_rule:8,6",best_of:3x6]'
python eval_sb3.py rollouts=ray rollouts.workers=4     in four Ray actors, here or on a cluster
Run the same command again to go on after an interruption.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from addiffusion_env.config import friendly, run_script, version_base
from addiffusion_env.plugins import with_plugins

if TYPE_CHECKING:
    from addiffusion_env.evaluation.report import Report

CONFIGS = Path(__file__).parent / "configs"


def evaluate(config: dict[str, Any]) -> Report | None:
    """Makes what is missing, writes the report, prints its table; with ``plan`` only prints what is missing."""
    from tqdm import tqdm

    from addiffusion_env.agents.factory import is_remote
    from addiffusion_env.backbones.devices import resolve_device
    from addiffusion_env.envs.settings import load_backbone, load_scorers
    from addiffusion_env.evaluation.choices import make_extras, make_samplers, out_folder, take_prompts, with_defaults
    from addiffusion_env.evaluation.cost import plan_cost, warm_up
    from addiffusion_env.evaluation.eval_config import EvaluationConfig
    from addiffusion_env.evaluation.filmstrips import render_filmstrips
    from addiffusion_env.evaluation.judges import Judges, described
    from addiffusion_env.evaluation.manifest import others_in, write_manifest
    from addiffusion_env.evaluation.ray_pool import maker
    from addiffusion_env.evaluation.report import print_report, write_report
    from addiffusion_env.evaluation.runner import EvaluationContext, carry_out, plan, to_make
    from addiffusion_env.evaluation.samples import sample_uids

    EvaluationConfig.of(config)
    config = with_plugins(config, [config["policy"]])
    samplers, settings = make_samplers(config)
    folder = out_folder(config)  # after the policy was found: a mistyped one leaves no folder behind
    config = with_defaults(config, str(settings.backbone))
    extras = make_extras(config, samplers, str(settings.backbone))
    judges = Judges.of(config["judges"], resolve_device(settings.device))
    prompts, config = take_prompts(settings.prompt_source(), config)
    backbone = load_backbone(settings)
    process = settings.process(backbone.capabilities, backbone.name)
    context = EvaluationContext(backbone, load_scorers(backbone, settings.scorers), process, judges)
    make = maker(config["rollouts"], samplers, settings, config["judges"])  # before planning binds the samplers
    plans = plan(samplers, prompts, config["seeds"], context)
    waiting = to_make(folder, plans, config["shard_size"])
    cost = plan_cost(plans, context, waiting, config["max_lanes"], measure=config["plan"])
    if config["plan"]:
        print(cost.table())
        return None
    others = others_in(folder, plans)
    made_by = described(context.scorers, judges)
    write_manifest(folder, plans, backbone.name, config, config["margin"], config["cost_per_nfe"], made_by)
    keep = config["keep_images"] or any(extra.needs_images for extra in extras)
    print(cost, *filter(None, [others]), sep="\n", flush=True)
    if any(waiting) and not is_remote(config["rollouts"]):
        warm_up(backbone, context.scorers, process, prompts)
    total = sum(len(entry.jobs) for entry in plans)
    dropped: list[str] = []
    with tqdm(total=total, unit="image", disable=None if config["progress_bar"] else True) as bar:
        records = carry_out(
            plans,
            context,
            folder,
            max_lanes=config["max_lanes"],
            shard_size=config["shard_size"],
            keep_images=keep or sample_uids(plans, config["samples"]),
            max_faults=config["max_faults"],
            on_records=lambda made: bar.update(len(made)),
            make=make,
            on_fault=lambda job, fault: dropped.append(f"{job.prompt.text!r}, seed {job.seed}: {fault.error.cause}"),
        )
    if dropped:
        print(f"{len(dropped)} of {total} images were left out; the next run tries them again:", *dropped, sep="\n  ")
    if config["filmstrips"]:
        render_filmstrips(plans, records, context, folder)
    for extra in extras:
        extra.run(folder, prompts)
    report = write_report(folder)
    print_report(report)
    return report


def defaults() -> dict[str, Any]:
    """The settings of ``configs/eval.yaml``."""
    config: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(CONFIGS / "eval.yaml"))  # type: ignore[assignment]
    return {key: value for key, value in config.items() if key not in ("hydra", "defaults")}


def own_settings(config: DictConfig) -> dict[str, Any]:
    """Those of this script: a backbone's file also holds settings of training, which are left unresolved."""
    found = {key: config[key] for key in defaults()}
    return {key: OmegaConf.to_object(value) if OmegaConf.is_config(value) else value for key, value in found.items()}


def check_report(changes: Mapping[str, Any] | None, run: str = "") -> None:
    """Refuses what :func:`evaluate_run` would refuse, before there is a run to evaluate, nor the policy in its folder.

    Raises:
        ConfigError: for an unknown key or a wrong value.
        UnknownNameError: for a sampler that does not exist.
    """
    from addiffusion_env.evaluation.eval_config import changed, extras_in
    from addiffusion_env.samplers import make_sampler

    config = with_plugins(changed(defaults(), changes))
    extras_in(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of costs that the policy in its place does not reach
        for sampler in config["samplers"]:
            make_sampler(sampler.replace(f"policy:{run}@", "policy:emoji@") if run else sampler)


def evaluate_run(folder: Path | str, changes: Mapping[str, Any] | None = None, **more: Any) -> Report | None:
    """Evaluates a run's policy with the defaults of ``configs/eval.yaml``; the report goes to ``<run>/report``.

    Raises:
        ConfigError: for a key that ``configs/eval.yaml`` does not have, with the nearest one, or a wrong value.
    """
    from addiffusion_env.evaluation.eval_config import changed

    return evaluate(changed(defaults(), {**(changes or {}), **more, "policy": str(folder)}))


@hydra.main(**version_base(), config_path="configs", config_name="eval")
@friendly
def main(config: DictConfig) -> None:
    """Hydra's entry."""
    evaluate(own_settings(config))


if __name__ == "__main__":
    run_script(main, CONFIGS, "eval")
