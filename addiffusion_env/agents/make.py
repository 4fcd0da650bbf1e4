"""A method of whatever a caller names or holds: a specification, a trained policy, a model of Stable-Baselines3."""

from __future__ import annotations

from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm

from addiffusion_env.agents.hub_policy import HubPolicy, is_zip, named_policy
from addiffusion_env.agents.learned import LearnedMethod
from addiffusion_env.agents.policy_file import find_policy
from addiffusion_env.agents.sb3_zip import import_zip, of_model
from addiffusion_env.baselines import make_method
from addiffusion_env.baselines.base import Method
from addiffusion_env.errors import ConfigError

NAMED = {"oracle": "oracle_stop:preference"}
"""Short names of methods without learning."""


def make_policy(policy: str | Path | Method | HubPolicy | BaseAlgorithm, trust: bool = False) -> Method:
    """A method from a specification, the name of a trained policy, or what is one already.

    Args:
        policy: ``"fixed:20"``, ``"stop:12"``, ``"oracle"`` ...; ``"emoji"``, a folder or a hub id; a method; a model of
            Stable-Baselines3, or its zip.
        trust: that a zip may be unpickled, which can run any code.

    Raises:
        UnknownNameError: for an unknown name; the nearest known one is given.
        ConfigError: for a specification of the wrong form, or a model that lacks what a policy needs.
        UntrustedFileError: for a zip without ``trust``.
        WeightsError: for a folder or hub id without a policy.
    """
    if isinstance(policy, HubPolicy):
        return policy.method()
    if isinstance(policy, BaseAlgorithm):
        return of_model(policy).method()
    if not isinstance(policy, str | Path):
        if not isinstance(policy, Method):
            raise ConfigError(f"a policy is named or a Method, got {type(policy).__name__}", "policy='fixed:20'")
        return policy
    if is_zip(policy):
        return import_zip(policy, trust=trust).method()
    text = NAMED.get(str(policy), str(policy))
    specified = ":" in text[2:]  # further left it stands behind a drive's letter
    folder = None if specified and find_policy(text) is None else named_policy(policy)
    return make_method(text) if folder is None else LearnedMethod.from_run(folder)
