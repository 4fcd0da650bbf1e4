"""Creates a sampler from a specification, a trained policy's name or a model of Stable-Baselines3."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from addiffusion_env.agents.hub_policy import is_zip, located, named_policy, no_policy
from addiffusion_env.agents.learned import load_sampler
from addiffusion_env.agents.policy_file import find_policy, load_config, shipped
from addiffusion_env.agents.sb3_zip import import_zip, of_model
from addiffusion_env.backbones import BACKBONES, traits_of
from addiffusion_env.backbones.pipelines import backbone_in
from addiffusion_env.errors import ConfigError, unknown
from addiffusion_env.samplers import make_sampler
from addiffusion_env.samplers.base import Sampler

MODEL_KEYS = ("backbone", "name_or_path", "backbone_options", "scorers", "dtype")
"""Settings of a policy's environment that determine which model it ran on."""

NAMED = {"oracle": "oracle_stop:preference"}
"""Short names of samplers without learning."""


def make_policy(policy: str | Path | Sampler | BaseAlgorithm, trust: bool = False) -> Sampler:
    """A sampler from a specification or the name of a trained policy; a sampler is returned as it is.

    Args:
        policy: ``"fixed:20"``, ``"stop:12"``, ``"oracle"``; ``"emoji"``, a folder or a hub id; a sampler; a model of
            Stable-Baselines3, or its zip.
        trust: whether a zip may be unpickled, which can run any code.

    Raises:
        UnknownNameError: for an unknown name; the nearest known one is given.
        ConfigError: for a specification of the wrong form, or a model that lacks what a policy needs.
        UntrustedFileError: for a zip without ``trust``.
        WeightsError: for a folder or hub id without a policy.
    """
    if isinstance(policy, BaseAlgorithm):
        return of_model(policy)
    if not isinstance(policy, str | Path):
        if not isinstance(policy, Sampler):
            raise ConfigError(f"a policy must be a name or a Sampler, got {type(policy).__name__}", "policy='fixed:20'")
        return policy
    if is_zip(policy):
        return import_zip(policy, trust=trust)
    text = NAMED.get(str(policy), str(policy))
    specified = ":" in text[2:]  # a colon before that follows a Windows drive letter
    folder = None if specified and find_policy(text) is None else named_policy(policy)
    return make_sampler(text) if folder is None else load_sampler(folder)


def policy_at(run: str | Path, cost_per_nfe: float | None = None, trust: bool = False) -> Sampler:
    """A trained policy under the name used in evaluations, ``policy:RUN@COST``, with a fingerprint of its files.

    Args:
        run: a run's or policy's folder, a shipped policy's name, or a zip of Stable-Baselines3.
        cost_per_nfe: cost of one NFE; ``None`` is the policy's default.
        trust: that a zip may be unpickled, which can run any code.

    Raises:
        UntrustedFileError: for a zip without ``trust``.
        ConfigError: for a zip without the environment that it was trained on, or a cost per NFE below 0.
        WeightsError: when there is no policy.
    """
    if not is_zip(run):
        return make_sampler(f"policy:{run}" if cost_per_nfe is None else f"policy:{run}@{cost_per_nfe}")
    read = import_zip(run, trust=trust)
    cost = read.cost_per_nfe if cost_per_nfe is None else float(cost_per_nfe)
    fingerprint = hashlib.sha256(Path(run).read_bytes()).hexdigest()
    return replace(read, cost_per_nfe=cost, name=f"policy:{Path(run).stem}@{cost:g}", fingerprint=fingerprint)


def policy_and_model(
    name_or_dir: str | Path, policy: Any, trust: bool, **hub: Any
) -> tuple[Sampler, Mapping[str, Any]]:
    """The requested policy, and the environment that determines its model."""
    name, place = str(name_or_dir), located(name_or_dir, **hub)
    if place is None and name not in BACKBONES:
        raise unknown("policy or backbone", name, [*BACKBONES, *shipped()])
    if place is None and policy is None:
        raise ConfigError(
            f"{name!r} is a backbone, and no policy ships for it",
            f"pass a policy with it: AdaptivePipeline.from_pretrained({name!r}, policy='fixed:20')",
        )
    if place is None:
        return make_policy(policy, trust), {"backbone": name}
    if find_policy(place) is not None:
        return make_policy(place if policy is None else policy, trust), load_config(place).environment
    if is_zip(place):
        held = import_zip(place, trust=trust)
        return make_policy(held if policy is None else policy, trust), held.config.environment
    model = None if policy is None or place.is_file() else backbone_in(place)
    if model is None:
        raise no_policy(name, place)
    return make_policy(policy, trust), {"backbone": model, "name_or_path": name}


def model_settings(known: Mapping[str, Any], backbone: Any) -> dict[str, Any]:
    """A policy's model settings with the model replaced."""
    known = {key: value for key, value in known.items() if key in MODEL_KEYS}
    if not isinstance(backbone, str | Path):
        return known
    if str(backbone) not in BACKBONES:
        found = backbone_in(Path(backbone).expanduser()) if traits_of(known["backbone"]).embedded else None
        return {**known, "backbone": found or known["backbone"], "name_or_path": str(backbone)}
    return known if str(backbone) == known["backbone"] else {"backbone": str(backbone)}
