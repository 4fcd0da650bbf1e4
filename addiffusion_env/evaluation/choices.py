"""Creates samplers, environment and output folder from the configuration of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

from addiffusion_env import ENVIRONMENTS
from addiffusion_env.agents.hub_policy import is_zip
from addiffusion_env.agents.make import policy_at
from addiffusion_env.agents.policy_file import shipped
from addiffusion_env.agents.saved_policy import SavedPolicy
from addiffusion_env.backbones import traits_of
from addiffusion_env.envs.settings import EnvSettings, clip_width
from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.eval_config import extras_in
from addiffusion_env.evaluation.extras import Extra
from addiffusion_env.evaluation.judges import choose_judges
from addiffusion_env.evaluation.store import RecordStore
from addiffusion_env.prompts import BENCHMARKS, Prompt, PromptSource
from addiffusion_env.samplers import make_sampler
from addiffusion_env.samplers.base import Sampler


def make_samplers(config: Mapping[str, Any]) -> tuple[list[Sampler], EnvSettings]:
    """The samplers of a configuration, the policy first, and the environment that they share.

    Raises:
        ConfigError: for a policy that does not fit the environment's model, or costs per NFE without a policy.
        UnknownNameError: for a sampler that does not exist.
        UntrustedFileError: for a zip of Stable-Baselines3 without ``trust``.
        WeightsError: for a folder without a policy.
    """
    runs = [] if config["policy"] is None else [config["policy"]]
    runs += [run for key, kind in extras_in(config).items() for run in kind.runs(config[key])]
    if not runs and any(cost_per_nfe is not None for cost_per_nfe in config["costs_per_nfe"]):
        raise ConfigError(
            f"costs_per_nfe={list(config['costs_per_nfe'])} would not take effect: there is no policy", "policy=emoji"
        )
    trust = config["trust"]
    at_costs = [policy_at(run, cost_per_nfe, trust) for run in runs for cost_per_nfe in config["costs_per_nfe"]]
    # "24nfe" may be the cost at an end of the frontier, which is listed as well.
    policies: list[Any] = list({sampler.name: sampler for sampler in at_costs}.values())
    # A policy defines its environment, weights included; the settings given here override it.
    known = policies[0].config.environment if policies else {}
    settings = EnvSettings.of(**({**known, **(config["env"] or {})} or ENVIRONMENTS["AdDiffusion-Emoji-v2"]))
    source, options = choose_prompts(config, str(settings.backbone))
    settings = replace(settings, prompts=source, prompt_options=options, device=config["device"], dtype=config["dtype"])
    samplers = policies + [make_sampler(spec) for spec in config["samplers"]]
    for sampler in samplers:
        if isinstance(sampler, SavedPolicy):
            sampler.check_fits(str(settings.backbone), clip_width(str(settings.backbone), settings.scorers))
    return samplers, settings


def make_extras(config: Mapping[str, Any], samplers: Sequence[Sampler], backbone: str) -> list[Extra]:
    """The extras of a configuration, each with its settings checked.

    Raises:
        ConfigError: see :class:`.Extra` and :func:`.extras_in`.
    """
    return [kind(config, samplers, backbone) for kind in extras_in(config).values()]


def with_defaults(config: Mapping[str, Any], backbone: str) -> dict[str, Any]:
    """The configuration, with the backbone's default prompt source and judges filled in.

    Raises:
        ConfigError: for a judge that cannot read the backbone's images.
        UnknownNameError: for a judge that does not exist.
    """
    source = config["prompt_source"] or traits_of(backbone).prompts
    return {**config, "prompt_source": source, "judges": choose_judges(config["judges"], backbone)}


def out_folder(config: Mapping[str, Any]) -> Path:
    """Folder of records and report; created immediately.

    Without ``out``: ``report`` in the policy's run, or the folder of an extra (``hypotheses``). A shipped policy or a
    zip has no run folder, so its evaluation goes to ``runs``.

    Raises:
        RunFolderError: when it cannot be created.
    """
    policy = config["policy"]
    named = next((kind.folder for kind in extras_in(config).values() if kind.folder), None)
    if is_zip(policy or ""):
        default = Path("runs", named or f"eval_{Path(policy).stem}")
    elif policy is None or str(policy) in shipped():
        default = Path("runs", named or ("eval" if policy is None else f"eval_{policy}"))
    else:
        default = Path(policy) / (named or "report")
    return RecordStore(config["out"] or default).folder


GRAMMAR_PROMPTS = 128
"""Number of prompts that an evaluation takes from an infinite source."""


def choose_prompts(config: Mapping[str, Any], backbone: str) -> tuple[str, dict[str, Any]]:
    """The prompt source of an evaluation and its options.

    Args:
        config: with ``benchmark``, ``benchmark_path`` and ``benchmark_options``; without a benchmark ``prompt_source``
            and ``prompt_options`` count, or the backbone's own source and its test prompts.
        backbone: of the images; a benchmark's prompts are written in the words of its world.

    Raises:
        UnknownNameError: for a benchmark that does not exist.
    """
    name, traits = config["benchmark"], traits_of(backbone)
    if name is None:
        source, options = config["prompt_source"] or traits.prompts, config["prompt_options"]
        return source, dict(traits.test_options if options is None and source == traits.prompts else options or {})
    if name not in BENCHMARKS:
        raise BENCHMARKS.unknown(name)
    return name, {"path": config["benchmark_path"], "world": traits.world, **(config["benchmark_options"] or {})}


def take_prompts(source: PromptSource, config: Mapping[str, Any]) -> tuple[list[Prompt], dict[str, Any]]:
    """The prompts of an evaluation: ``config["prompts"]`` of them, or all of a list.

    Returns:
        The prompts, and the configuration with their number and, for a benchmark, the origin and hash of the list.
    """
    count = config["prompts"]
    if count is None:
        count = len(source) if isinstance(source, Sized) else GRAMMAR_PROMPTS
    prompts = source.take(count, config["prompt_seed"])
    taken = {**config, "prompts": len(prompts)}
    record = getattr(source, "record", None)
    return prompts, taken if record is None else {**taken, "benchmark_list": record()}
