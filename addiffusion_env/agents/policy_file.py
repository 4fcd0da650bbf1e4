"""A trained policy as two plain files: ``policy.safetensors`` and ``config.json``. Loading executes no code."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from safetensors.torch import load_file, save_file
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from addiffusion_env.agents.calibrator_file import copied, located
from addiffusion_env.agents.policy import build_network, layers
from addiffusion_env.backbones import BACKBONES
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import ConfigError, WeightsError, check_settings, closest
from addiffusion_env.files import write_text, writing_to
from addiffusion_env.plugins import load_plugins, recorded_plugins, require_plugins
from addiffusion_env.settings import check_types, present, present_settings

FORMAT = 1
WEIGHTS_FILE, CONFIG_FILE = "policy.safetensors", "config.json"
FRONTIER_OF = ("backbone", "scorers")
"""What a frontier depends on besides the policy."""
LONGEST_SHOWN = 300
"""Maximum number of characters of a folder's name in a message."""
PRETRAINED = Path(__file__).parent / "pretrained"
"""Policies that ship with the package, one folder each."""
RESULTS_FILE = "results.json"
"""Results file in a policy's folder, for results measured outside its run's report."""
OPTIONAL = ("network", "rules", "plugins", "identity", "results")
"""Entries of its configuration that are left out where they are empty."""
ABOUT = ("README.md", RESULTS_FILE)
"""Files that describe a policy and do not affect its behaviour."""


@dataclass(frozen=True)
class PolicyConfig:
    """What a policy needs besides its weights.

    Attributes:
        environment: the environment's settings that it was trained on.
        observation: key -> (low, length) of the observation.
        net_arch: widths of the hidden layers for policy and value, of this project's own policy.
        highest_cost_per_nfe: the cost per NFE that is observed as 1.
        default_cost_per_nfe: used when neither a cost per NFE nor a target is given.
        frontier: (cost per NFE, mean NFE) pairs, decreasing in NFE, for ``target_nfe``.
        frontier_prompts: description of the prompts it was measured on; files without it used training prompts, on
            which a policy spends less than on others.
        provenance: training command, seed, steps, results.
        network: of any other network, its class and ``policy_kwargs`` (:func:`.policy.describe_network`); empty for
            this project's own policy.
        rules: of a calibrated rule (:class:`.MeasuredRule`); empty for a network.
        plugins: modules that must be imported before it can be used; see :mod:`addiffusion_env.plugins`.
        identity: ``backbone`` and ``scorers`` -> :func:`.identity.results_digest` of those that it was trained and its
            frontier measured on; empty in files of older versions.
        results: measured results, as returned by :func:`read_results`; ``None`` if not measured.
    """

    environment: Mapping[str, Any]
    observation: Mapping[str, tuple[float, int]]
    net_arch: Mapping[str, list[int]]
    highest_cost_per_nfe: float
    default_cost_per_nfe: float
    frontier: tuple[tuple[float, float], ...] = ()
    frontier_prompts: str = "training prompts"
    provenance: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    rules: Sequence[Mapping[str, Any]] = ()
    plugins: Sequence[str] = ()
    identity: Mapping[str, str] = field(default_factory=dict)
    results: Mapping[str, Any] | None = None

    def space(self) -> spaces.Dict:
        """The observation space, its keys in the order of the policy's weights."""
        boxes = ((key, spaces.Box(low, 1.0, (dim,), np.float32)) for key, (low, dim) in self.observation.items())
        return spaces.Dict(OrderedDict(boxes))  # a plain dict would be sorted by name

    def check_cost_per_nfe(self, cost_per_nfe: float) -> None:
        """Warns of a cost per NFE outside the trained range, where the policy's behaviour is unknown."""
        if "cost_per_nfe" not in self.observation:
            return
        low, high = EnvSettings.of(**self.environment).cost_range()
        if not low <= cost_per_nfe <= high:
            warnings.warn(
                f"cost_per_nfe={cost_per_nfe:g} is outside the range that the policy was trained at, "
                f"{low:g} to {high:g}; the nearest is "
                f"{min(max(cost_per_nfe, low), high):g}",
                stacklevel=3,
            )

    def cost_per_nfe_for(self, target_nfe: float) -> float:
        """The cost per NFE at which the policy spent ``target_nfe`` on average, interpolated on the frontier.

        For a target outside the frontier a warning is issued and the nearest end of the frontier is used.

        Raises:
            ConfigError: when no frontier was measured.
        """
        if not self.frontier:
            raise ConfigError("this policy has no measured frontier for target_nfe", "give cost_per_nfe= instead")
        ordered = sorted(self.frontier, key=lambda pair: pair[1])
        least, most = ordered[0][1], ordered[-1][1]
        if not least <= target_nfe <= most:
            warnings.warn(
                f"target_nfe={target_nfe:g} is out of the policy's reach, which was measured to spend {least:.2f} to "
                f"{most:.2f} NFE; the nearest is {min(max(target_nfe, least), most):.2f}",
                stacklevel=3,
            )
        return float(np.interp(target_nfe, [nfe for _, nfe in ordered], [cost_per_nfe for cost_per_nfe, _ in ordered]))


def describe_space(space: spaces.Dict) -> dict[str, tuple[float, int]]:
    """A Dict of one-dimensional Boxes as plain numbers."""
    return {key: (float(box.low.min()), int(box.shape[0])) for key, box in space.spaces.items()}  # type: ignore[union-attr,attr-defined,index]


def describe_policy(
    environment: Mapping[str, Any], space: spaces.Space, network: Mapping[str, Any], net_arch: Any, **more: Any
) -> PolicyConfig:
    """The configuration of a network that was trained on an environment.

    Args:
        environment: the environment's settings.
        space: its observation space.
        network: see :func:`.describe_network`.
        net_arch: hidden layers of this project's own policy, in either of SB3's formats.
        **more: further fields of :class:`PolicyConfig`.
    """
    settings = EnvSettings.of(**environment)
    assert isinstance(space, spaces.Dict)
    return PolicyConfig(
        environment=dict(environment),
        observation=describe_space(space),
        net_arch={} if network else layers(net_arch),
        network=network,
        highest_cost_per_nfe=settings.cost_range()[1],
        default_cost_per_nfe=settings.typical_cost(),
        **more,
    )


def save_policy(folder: Path, policy: BasePolicy, config: PolicyConfig) -> None:
    """Writes a policy's folder, each file under a temporary name first; a calibrator that it reads is copied into it.

    Raises:
        RunFolderError: when it cannot be written.
        WeightsError: when its calibrator cannot be read.
    """
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        config = replace(config, environment=copied(config.environment, folder))
        save_file(saved_once(policy.state_dict()), folder / f".{WEIGHTS_FILE}")
        os.replace(folder / f".{WEIGHTS_FILE}", folder / WEIGHTS_FILE)
        write_text(folder / CONFIG_FILE, config_text(config))


def saved_once(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors, each under its first name: SB3 lists a shared features extractor three times.

    safetensors' own ``save_model`` notes the other names too, in an order that differs from file to file, so that equal
    policies would be different files.
    """
    kept: dict[Any, tuple[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kept.setdefault(tensor.data_ptr() or name, (name, tensor))  # an empty tensor has no address
    return {name: tensor.contiguous() for name, tensor in kept.values()}


def config_text(config: PolicyConfig) -> str:
    """A policy's configuration as JSON, as :func:`parse_config` reads it."""
    plain = {item.name: getattr(config, item.name) for item in fields(config)}
    kept = {name: value for name, value in plain.items() if value or name not in OPTIONAL}
    return json.dumps({"format": FORMAT, **kept}, indent=2, default=dict)  # other mappings than dicts


def shipped() -> list[str]:
    """Names of the policies that ship with the package."""
    return sorted(path.name for path in PRETRAINED.iterdir() if path.is_dir()) if PRETRAINED.is_dir() else []


def find_policy(name_or_dir: str | Path) -> Path | None:
    """The folder of a policy: of a shipped name, a policy's folder or a run; ``None`` when there is none."""
    candidates = (PRETRAINED / str(name_or_dir), Path(name_or_dir), Path(name_or_dir) / "policy")
    # Recognised by its weights: a run's folder has a config.json too, that of the training. os.path, unlike Path,
    # also accepts names that no file can have.
    return next((folder for folder in candidates if os.path.isfile(folder / WEIGHTS_FILE)), None)


def load_config(folder: Path) -> PolicyConfig:
    """Reads a policy's configuration; in a run's folder the plugins of the run are imported first.

    Raises:
        WeightsError: when the folder holds no policy, or one of another format.
        ConfigError: when a plugin of the run cannot be imported; elsewhere, when one is needed that is not imported.
    """
    try:
        raw = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if not os.path.isfile(folder / CONFIG_FILE):  # or not even a valid file name
            there = "it is a file, not a folder" if os.path.isfile(folder) else "there is no such folder"
            lacking = f"{CONFIG_FILE} is missing" if os.path.isdir(folder) else there
            shown = str(folder) if len(str(folder)) < LONGEST_SHOWN else f"{str(folder)[:LONGEST_SHOWN]} ..."
            raise WeightsError(f"no policy in {shown}: {lacking}", _instead(str(folder))) from error
        raise WeightsError(
            f"{folder / CONFIG_FILE} cannot be read: {error}", "train again, or copy the folder again"
        ) from error
    if not isinstance(raw, dict):
        raise WeightsError(f"{folder} is not a policy of format {FORMAT}", "use a policy that train_sb3.py saved")
    if folder.name == "policy":  # a run's folder is trusted; a policy alone may come from anywhere
        load_plugins(recorded_plugins(folder.parent), f"plugins of the run {folder.parent}")
    return parse_config({"results": read_results(folder), **raw}, folder)


def _instead(name: str) -> str:
    """What to pass instead of something that is not a policy."""
    if name in BACKBONES:
        return f"{name} is a backbone, named by backbone={name}; leave policy out for samplers without learning"
    if name.endswith(".zip"):
        return "eval_sb3.py takes a zip as policy=FILE.zip trust=true; or read it with agents.sb3_zip.import_zip"
    meant = closest(name, shipped())
    return (
        f"{f'did you mean {meant!r}? ' if meant else ''}name the folder of a finished run, or {' or '.join(shipped())}"
    )


def parse_config(raw: Mapping[str, Any], where: Path) -> PolicyConfig:
    """The configuration that :func:`config_text` wrote, read from JSON.

    Args:
        raw: the object.
        where: the folder it was read from, which holds its calibrator, if it has one.

    Raises:
        WeightsError: for another format, or values of the wrong kind.
        ConfigError: for an unknown setting, or a plugin that is not imported.
    """
    plain = dict(present("policy file entry", raw, note=False))
    if plain.pop("format", None) != FORMAT:
        raise WeightsError(f"{where} is not a policy of format {FORMAT}", "use a policy that train_sb3.py saved")
    check_settings(f"the policy in {where} has", plain, (item.name for item in fields(PolicyConfig)))
    try:
        plain["environment"] = located(present_settings(plain["environment"], note=False), where)
        plain["observation"] = present("observation key", plain["observation"], note=False)
        plain["observation"] = {key: (float(low), int(dim)) for key, (low, dim) in plain["observation"].items()}
        plain["frontier"] = tuple((float(cost_per_nfe), float(nfe)) for cost_per_nfe, nfe in plain["frontier"])
        config = PolicyConfig(**plain)
        check_types("", config)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, ConfigError) as error:
        raise WeightsError(
            f"{where / CONFIG_FILE} does not describe a policy: {error}".splitlines()[0], "copy the folder again"
        ) from error
    require_plugins(config.plugins, where)
    return config


def read_results(folder: Path) -> dict[str, Any] | None:
    """Measured results of a policy: ``results.json`` in its folder, or the report of its run.

    Returns:
        ``about`` (prompts, seeds and judge in a sentence), ``command``, and ``rows``, the policy's own first:
        ``sampler`` and, each as ``{"estimate", "low", "high"}``, ``correct``, ``nfe``, ``preference`` and ``seconds``
        where they were measured. ``None`` when there are none, they cannot be read, or belong to another policy.
    """
    report = folder.parent / "report"
    try:
        if (folder / RESULTS_FILE).is_file():
            return json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
        summary = json.loads((report / "summary.json").read_text(encoding="utf-8"))
        evaluation = json.loads((report / "evaluation.json").read_text(encoding="utf-8"))
        prints = {entry["name"]: entry.get("fingerprint") for entry in evaluation.get("samplers", ())}
        measured = prints.get(summary["focus"])
        if measured and measured != folder_digest(folder):
            return None  # the report describes an earlier state of this policy
        settings = evaluation["settings"]
        rows = sorted(summary["samplers"], key=lambda row: row["sampler"] != summary["focus"])
        judges = ", ".join(settings["judges"] or []) or "no judge"
        return {
            "about": f"{rows[0]['prompts']} prompts of {settings['benchmark'] or settings['prompt_source']}, seeds "
            f"{settings['seeds']}, judged by {judges}. Seconds are wall clock.",
            "command": f"python eval_sb3.py policy={settings['policy']} prompts={rows[0]['prompts']}",
            "rows": [{key: row[key] for key in ("sampler", "correct", "nfe", "preference", "seconds")} for row in rows],
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None  # no report, or one of another version: results are optional


def folder_digest(folder: Path) -> str:
    """sha256 over names and contents of a policy folder's files (a run's ``policy`` folder where there is one).

    Descriptive files (:data:`ABOUT`) are excluded.
    """
    folder = folder / "policy" if (folder / "policy").is_dir() else folder
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file() and path.name not in ABOUT):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def load_weights(policy: BasePolicy, tensors: Mapping[str, Tensor]) -> None:
    """Puts tensors into a policy, those that an earlier version named by an old observation key too.

    Raises:
        ValueError: for a tensor that is missing or too many.
        RuntimeError: for one of another shape.
    """
    renamed = {
        ".".join(present("observation key", part, note=False) for part in name.split(".")): tensor
        for name, tensor in tensors.items()
    }
    missing, unexpected = policy.load_state_dict(renamed, strict=False)
    own = policy.state_dict()
    # A features extractor that is shared is listed three times and saved once.
    filled = {own[name].data_ptr() for name in renamed if name in own}
    missing = [name for name in missing if own[name].data_ptr() not in filled]
    if missing or unexpected:
        raise ValueError(f"missing {missing or 'nothing'}, not known {unexpected or 'nothing'}")


def load_policy(folder: Path) -> tuple[BasePolicy, PolicyConfig]:
    """Loads a policy for inference, on the CPU.

    Raises:
        WeightsError: when a file is missing, damaged or does not fit.
        ConfigError: when its network is of a class that is not imported.
    """
    config = load_config(folder)
    try:
        policy = build_network(config.network, config.net_arch, config.space())
        load_weights(policy, load_file(folder / WEIGHTS_FILE))
    except ConfigError:
        raise
    except Exception as error:  # safetensors and torch raise many kinds for damaged files
        raise WeightsError(
            f"{folder / WEIGHTS_FILE} cannot be loaded: {error}", "copy the folder again, or train again"
        ) from error
    return policy.eval(), config
