"""Stable-Baselines3's own models and zip files: export of a policy to a zip, and import of a zip as a policy.

A zip that :func:`export_zip` wrote loads with the ``load`` of its algorithm (``MaskablePPO.load``) like any other and
training can continue; besides SB3's members it holds ``addiffusion.json`` with environment, frontier and provenance.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file

from addiffusion_env.agents.algorithms import default_policy, find_algorithm
from addiffusion_env.agents.calibrator_file import CALIBRATOR_FILE, calibrator_path, portable
from addiffusion_env.agents.hub_policy import ZIP_IMPORT, named_policy
from addiffusion_env.agents.learned import PolicySampler
from addiffusion_env.agents.policy import NET_ARCH, describe_network, load_class, with_classes
from addiffusion_env.agents.policy_file import (
    PolicyConfig,
    config_text,
    describe_policy,
    load_config,
    load_policy,
    parse_config,
)
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import ConfigError, UntrustedFileError, WeightsError
from addiffusion_env.files import writing_to
from addiffusion_env.observations import FEATURES

DETAILS_FILE = "addiffusion.json"


def export_zip(name_or_dir: str | Path, path: str | Path) -> Path:
    """Writes a trained policy in SB3's format; the optimiser state is not included.

    Args:
        name_or_dir: a shipped policy's name, a run's or policy's folder, or a hub id.
        path: of the zip.

    Returns:
        The path.

    Raises:
        WeightsError: when there is no such policy.
        RunFolderError: when the file cannot be written.
    """
    folder, path = named_policy(name_or_dir), Path(path)
    if folder is None:
        raise WeightsError(f"no policy {str(name_or_dir)!r}", "name a folder, a hub id 'owner/name', or 'emoji'")
    config = load_config(folder)
    if config.rules:
        raise ConfigError(
            f"{name_or_dir} holds a calibrated rule, which has no network for Stable-Baselines3",
            "copy its folder, or push it to the hub",
        )
    kind = find_algorithm(str(config.provenance.get("algorithm", "maskable_ppo")))
    policy, given = default_policy(kind), {"net_arch": {k: list(v) for k, v in config.net_arch.items()}}
    if network := config.network:
        policy, given = load_class("policy", network["policy"], BasePolicy), with_classes(network["policy_kwargs"])
    # Spaces instead of an environment: SB3 builds its networks from them alone.
    small = {"buffer_size": 1} if issubclass(kind, OffPolicyAlgorithm) else {}
    model: Any = kind(policy, None, policy_kwargs=given, device="cpu", _init_setup_model=False, **small)  # type: ignore[arg-type,call-arg]
    model.observation_space, model.action_space, model.n_envs = config.space(), spaces.Discrete(3), 1
    model._setup_model()
    model.policy.load_state_dict(load_policy(folder)[0].state_dict())
    model.num_timesteps = int(config.provenance.get("decisions", 0))
    with writing_to(path):
        model.save(path)
        with zipfile.ZipFile(path, "a") as archive:
            if (calibrator := calibrator_path(config.environment)) is not None:
                archive.write(calibrator, CALIBRATOR_FILE)
            archive.writestr(DETAILS_FILE, config_text(replace(config, environment=portable(config.environment))))
    return path


def import_zip(path: str | Path, environment: Mapping[str, Any] | None = None, trust: bool = False) -> PolicySampler:
    """Reads the policy of a model that SB3 saved.

    Args:
        path: of the zip.
        environment: settings of the environment that it was trained on; not needed for a zip of :func:`export_zip`.
        trust: whether the zip may be unpickled, which can run any code; only ``True`` itself counts. Policies
            (safetensors and JSON) and checkpoints (tensors, numbers, strings) run no code and need no trust.

    Raises:
        ConfigError: without an environment, or for a policy with other observations than the environments here.
        UntrustedFileError: without ``trust``.
        WeightsError: for a file that is missing, damaged or not an SB3 zip.
    """
    path = Path(path)
    if trust is not True:
        raise UntrustedFileError(
            f"{path} is a Stable-Baselines3 zip: loading it unpickles Python objects, which can run any code",
            "pass trust=True if you made it yourself or know who did; policies saved by train_sb3.py need no trust",
        )
    try:
        data, params, _ = load_from_zip_file(path, device="cpu")
        with zipfile.ZipFile(path) as archive:
            details = json.loads(archive.read(DETAILS_FILE)) if DETAILS_FILE in archive.namelist() else None
    except Exception as error:  # zipfile, pickle and torch raise many kinds for damaged files
        raise WeightsError(
            f"{path} is no readable zip of Stable-Baselines3: {error}", "save the model again"
        ) from error
    kind = (data or {}).get("policy_class")
    if not (isinstance(kind, type) and issubclass(kind, BasePolicy)):
        raise WeightsError(f"{path} holds no policy of Stable-Baselines3, its class is {kind}", "save the model again")
    assert data is not None
    _check_space(kind.__name__, data["observation_space"])
    config = _details(path, data, details, environment)
    made: dict[str, Any] = dict(data.get("policy_kwargs") or {})
    try:
        network = kind(config.space(), spaces.Discrete(3), lambda _: 0.0, **made)
        network.load_state_dict(params["policy"])  # type: ignore[arg-type]
    except (KeyError, RuntimeError, TypeError) as error:
        raise WeightsError(f"the weights in {path} do not fit: {error}", "save the model again") from error
    return PolicySampler(network.eval(), config)


def of_model(model: BaseAlgorithm) -> PolicySampler:
    """The policy of a model in memory, with the environment that the model was trained on.

    Args:
        model: of any algorithm and policy class, trained on one of this project's environments.

    Raises:
        ConfigError: for a model with other or normalised observations, or one that was loaded without its environment.
    """
    kind, network = type(model).__name__, model.policy
    if model.get_vec_normalize_env() is not None:
        raise ConfigError(f"the {kind} model reads observations through VecNormalize", "train it without")
    space, env = model.observation_space, model.get_env()
    _check_space(kind, space)
    if env is None:
        raise ConfigError(
            f"the {kind} model does not say which environment it was trained on", f"{kind}.load(path, env=env) does"
        )
    environment = _plain(env.get_attr("settings", [0])[0])
    network.set_training_mode(False)
    described = _network(type(network), model.policy_kwargs)
    provenance = {"algorithm": kind, "decisions": model.num_timesteps}
    return PolicySampler(network, describe_policy(environment, space, *described, provenance=provenance))


def _check_space(name: str, space: spaces.Space) -> None:
    if not isinstance(space, spaces.Dict) or not set(space.spaces) <= set(FEATURES):
        raise ConfigError(
            f"the {name} model was trained on observations that no environment here has, a {type(space).__name__}",
            "train it on an AdDiffusion environment",
        )


def _network(kind: type[BasePolicy], policy_kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Description and hidden layers of a network; both empty where it cannot be described, nor saved."""
    try:
        return describe_network(kind, policy_kwargs), policy_kwargs.get("net_arch", NET_ARCH)
    except ConfigError:
        return {}, {"pi": [], "vf": []}


def _plain(settings: EnvSettings) -> dict[str, Any]:
    """The settings of an environment that differ from the defaults, without prompts, as stored in a policy's file."""
    default = EnvSettings()
    changed = {item.name: getattr(settings, item.name) for item in fields(settings)}
    changed = {
        name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in changed.items()
        if value != getattr(default, name) and name not in ("prompts", "prompt_options", "render_mode", "pipe")
    }
    backbone = settings.backbone
    return {**changed, "backbone": backbone.name if isinstance(backbone, Backbone) else backbone}


def _details(path: Path, data: Mapping[str, Any], details: Any, environment: Mapping[str, Any] | None) -> PolicyConfig:
    if details is not None and environment is None:
        return parse_config(details, _calibrator_folder(path))
    if environment is None:
        raise ConfigError(
            f"{path} does not say which environment it was trained on",
            f"pass policy={ZIP_IMPORT}({str(path)!r}, {{'backbone': 'emoji', ...}}, trust=True)",
        )
    described = _network(data["policy_class"], data.get("policy_kwargs") or {})
    provenance = {"imported_from": path.name, "decisions": int(data.get("num_timesteps", 0))}
    return describe_policy(environment, data["observation_space"], *described, provenance=provenance)


def _calibrator_folder(path: Path) -> Path:
    """A temporary folder with the calibrator of a zip, or the path itself, for messages, if it holds none."""
    with zipfile.ZipFile(path) as archive:
        if CALIBRATOR_FILE not in archive.namelist():
            return path
        folder = Path(tempfile.mkdtemp(prefix="addiffusion-"))
        (folder / CALIBRATOR_FILE).write_bytes(archive.read(CALIBRATOR_FILE))
        return folder
