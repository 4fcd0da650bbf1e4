"""Hydra configurations, checked before anything runs: the error for an unknown key suggests the nearest known one."""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from addiffusion_env import ENVIRONMENTS
from addiffusion_env.errors import AdDiffusionError, ConfigError, closest, nearest
from addiffusion_env.settings import OLD_NAMES, note_renamed

HYDRA_FLAGS = re.compile(r"^(-|[~+]*hydra[./=])")

PLAN_FLAG = "--plan"
"""Written for ``plan=true``: Hydra has its own flags only."""

REMOVED = {
    "warm_start": "leave it out: training begins with PPO, on recorded attempts first where there is a table",
    "vec_env": "leave it out: lanes share one model; rollouts=ray spreads them over processes, GPUs and machines",
    "rollouts.lanes": "write lanes=VALUE in a training, max_lanes=VALUE in an evaluation",
    "rollouts.thumbnails": "leave it out: workers send images of at most 64 pixels a side",
    "rollouts.object_store_mb": "leave it out: a local Ray gets 200 MiB; set up a cluster of your own for more",
    "tabular.prompt_seed": "leave it out: the prompts of a table are always the same",
    "tabular.watch_every": "leave it out: the policy is measured on its table every ten updates",
    "hypotheses.nfe_points": "leave it out: the policy is compared at the mean NFE of each of its costs",
    "env.reference_steps": "leave it out: a bonus no longer compares with a reference schedule",
    "env.reward.terminal_bonus.relative": "leave it out: a bonus no longer compares with a reference schedule",
}
"""Keys of earlier versions -> what to do instead."""

RENAMED = {
    "replay": "tabular",
    "tabular.tries": "tabular.attempts",
    "tabular.pictures": "tabular.images",
    **OLD_NAMES["evaluation setting"],
    **{f"report.{old}": f"report.{new}" for old, new in OLD_NAMES["evaluation setting"].items()},
    **{f"env.{old}": f"env.{new}" for old, new in OLD_NAMES["environment setting"].items()},
}
"""Keys of earlier versions -> what they are called now; the old name is still understood, with a note."""


def version_base() -> dict[str, str]:
    """Hydra's ``version_base`` argument, where it is needed: 1.3 warns without it, 1.4 warns with it."""
    import hydra

    return {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}


def compose_config(config_dir: Path, config_name: str, overrides: Iterable[str] = ()) -> Any:
    """Composes a configuration as the scripts do.

    Args:
        config_dir: folder of the configuration files.
        config_name: name of the main file, without its suffix.
        overrides: overrides, as on the command line.

    Returns:
        The composed ``DictConfig``; interpolations are not resolved.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    store_environments()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir.resolve()), **version_base()):
        return compose(config_name, overrides=list(overrides))


def store_environments() -> None:
    """Registers the settings of every environment id as options of Hydra's group ``environment``.

    Configuration files refer to them in their defaults list, ``environment@env: AdDiffusion-Emoji-v2``, so that the
    settings are defined once. May be called more than once.
    """
    from hydra.core.config_store import ConfigStore

    for name, settings in ENVIRONMENTS.items():
        ConfigStore.instance().store(group="environment", name=name, node=settings)


def check_overrides(config_dir: Path, config_name: str, overrides: Iterable[str]) -> None:
    """Composes a configuration once, so that invalid overrides raise clearer errors than Hydra's.

    Raises:
        ConfigError: for an unknown key, group or option; suggests the nearest known one.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    overrides = list(overrides)
    check_removed(item.lstrip("+~").partition("=")[0] for item in overrides)
    wanted = [item for item in overrides if not HYDRA_FLAGS.match(item)]
    sweep = any(item in ("-m", "--multirun") for item in overrides)
    if sweep:  # a sweep's comma lists are not one configuration
        wanted = [item for item in wanted if "," not in item]
    plain = compose_config(config_dir, config_name)
    _check_form(overrides, plain)
    _check_experiments(plain, wanted, config_dir)
    try:
        compose_config(config_dir, config_name, wanted)
    # Hydra lets some through: a group's option that is no text, or longer than any file's name.
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        groups = [item for item in wanted if _option_exists(config_dir, item)]
        base = compose_config(config_dir, config_name, groups) if groups else plain
        raise _explain(error, base, wanted, config_dir) from error


def check_removed(keys: Iterable[str]) -> None:
    """Checks for keys, in Hydra's dotted form, that have been removed.

    Raises:
        ConfigError: for such a key, with what to do instead.
    """
    for key in keys:
        for old, remedy in REMOVED.items():
            if key == old or key.startswith(f"{old}."):
                raise ConfigError(f"the key {old!r} no longer exists", remedy)


def removed_in(section: str) -> dict[str, str]:
    """The removed keys of a section, for :attr:`.Settings.retired`."""
    return {key.partition(".")[2]: remedy for key, remedy in REMOVED.items() if key.startswith(f"{section}.")}


def renamed_overrides(overrides: Iterable[str]) -> list[str]:
    """Command-line overrides with :data:`RENAMED` keys replaced by their new names.

    >>> renamed_overrides(["tabular.attempts=3", "lanes=2"])
    ['tabular.attempts=3', 'lanes=2']
    """
    found = list(overrides)
    for old, new in RENAMED.items():
        for index, item in enumerate(found):
            match = re.fullmatch(rf"([+~]*){re.escape(old)}([.=].*)?", item, re.DOTALL)
            if match is not None:
                found[index] = f"{match[1]}{new}{match[2] or ''}"
                note_renamed(f"the key {old}", new)
    return found


def renamed(config: Mapping[str, Any], note: bool = True) -> dict[str, Any]:
    """A configuration with :data:`RENAMED` keys replaced by their new names; a value under an old name wins.

    Args:
        config: a nested configuration; not modified.
        note: whether to print a note to standard error.

    >>> renamed({"replay": {"tries": 3}, "tabular": {"attempts": 5, "lanes": 8}}, note=False)
    {'tabular': {'attempts': 3, 'lanes': 8}}
    """
    found = dict(config)
    for old, new in RENAMED.items():
        section, _, last = old.rpartition(".")
        part = found if not section else found.get(section)
        if not isinstance(part, Mapping) or last not in part:
            continue
        part, name = dict(part), new.rpartition(".")[2]
        value, present = part.pop(last), part.get(name)
        if isinstance(value, Mapping) and isinstance(present, Mapping):
            value = {**present, **value}
        part[name] = value
        found = {**found, section: part} if section else part
        if note:
            note_renamed(f"the key {old}", new)
    return found


def _check_form(overrides: Iterable[str], base: Mapping[str, Any]) -> None:
    """Checks that overrides are written ``key=value``, not ``--key value`` or ``key``.

    Raises:
        ConfigError: for another form; shows the correct one.
    """
    for item in overrides:
        key = item.lstrip("-").split("=", 1)[0].replace("-", "_")
        if item.startswith("--") and key in base:
            raise ConfigError(f"{item} is no flag", f"write {key}=VALUE, without dashes")
        if not item.startswith(("-", "~")) and "=" not in item:
            raise ConfigError(f"{item!r} has no value", f"write {item}=VALUE")


def _check_experiments(base: Mapping[str, Any], overrides: list[str], config_dir: Path) -> None:
    """Checks for an experiment of another script: Hydra would add its keys, which this script does not read.

    Raises:
        ConfigError: for such an experiment; names a key that this script does not have.
    """
    from omegaconf import OmegaConf

    for item in overrides:
        if item.startswith("experiment=") and _option_exists(config_dir, item):
            own = OmegaConf.load(config_dir / "experiment" / f"{item.partition('=')[2]}.yaml")
            check_removed(dotted_keys(OmegaConf.to_container(own)))  # type: ignore[arg-type]
            strange = [str(key) for key in own if key not in ("defaults", "hydra", *base, *RENAMED)]
            if strange:
                raise ConfigError(
                    f"{item} sets {strange[0]!r}, which this script does not have",
                    "it is another script's: train_sb3.py trains, eval_sb3.py evaluates",
                )


def _option_exists(config_dir: Path, item: str) -> bool:
    group, _, value = item.partition("=")
    return os.path.isfile(config_dir / group / f"{value}.yaml")  # no error for an invalid file name


def _explain(error: Exception, base: Mapping[str, Any], overrides: list[str], config_dir: Path) -> ConfigError:
    from omegaconf import OmegaConf

    # Unresolved: interpolations of a sweep (${hydra:job.num}) have no value before a job runs.
    known = dotted_keys(OmegaConf.to_container(base, resolve=False))  # type: ignore[arg-type]
    for item in overrides:
        if item.startswith("+"):  # adds a new key, which need not be known
            if f"already at '{item[1:].split('=', 1)[0]}'" in str(error):
                return ConfigError(f"{item} adds a key that is there already", f"write {item[1:]}")
            continue
        key = item.lstrip("~").split("=", 1)[0]
        if key.startswith("environment@"):
            value = item.partition("=")[2]
            return ConfigError(f"there is no environment id {value!r}", nearest(value, ENVIRONMENTS))
        if os.path.isdir(config_dir / key):
            options = sorted(path.stem for path in (config_dir / key).glob("*.yaml"))
            value = item.split("=", 1)[-1]
            if value not in (*options, "null"):
                return ConfigError(f"configs/{key} has no option {value!r}", nearest(value, options))
        elif key not in known:
            return ConfigError(f"the configuration has no key {key!r}", _near(key, known))
        elif item.partition("=")[2].startswith("{") and any(name.startswith(f"{key}.") for name in known):
            return ConfigError(
                f"{item!r} holds a key that {key} does not have",
                f"+{key}.NAME=VALUE adds one, ~{key}.NAME takes one out, {key}.NAME=VALUE changes one",
            )
    return ConfigError(str(error).splitlines()[0], "settings are written key=value, a list 'key=[a,b]'")


def _near(key: str, known: list[str]) -> str:
    """The nearest of all keys, and the known keys of the same section, rather than all keys."""
    parent, _, last = key.rpartition(".")
    beside = [name for name in known if name.rpartition(".")[0] == parent]
    close = closest(key, known)
    if parent in known:
        ends = {name.rpartition(".")[2]: name for name in beside}
        elsewhere = min((name for name in known if f".{name}".endswith(f".{last}")), key=len, default=None)
        close = ends.get(closest(last, ends) or "", elsewhere)
    hint = f"did you mean {close!r}? " if close else ""
    if parent in known and not beside:
        return f"{parent} is null: write '{parent}={{{key[len(parent) + 1 :]}: VALUE}}'"
    adding = f"; +{key}=VALUE adds what the files leave out" if parent in known else ""
    if parent not in known:
        beside = [name for name in known if "." not in name]
    return f"{hint}known: {', '.join(sorted(beside))}{adding}"


def dotted_keys(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Every key of a nested configuration in Hydra's dotted form.

    >>> dotted_keys({"a": 1, "b": {"c": 2}})
    ['a', 'b', 'b.c']
    """
    keys = []
    for key, value in config.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            keys += dotted_keys(value, f"{prefix}{key}.")
    return keys


def dotted_values(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a nested configuration, by Hydra's dotted keys.

    >>> dotted_values({"a": 1, "b": {"c": 2}})
    {'a': 1, 'b.c': 2}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found.update(dotted_values(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def friendly(main: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a script's main function: no traceback for user errors (two lines, exit code 2) or Ctrl-C (130)."""

    @functools.wraps(main)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except AdDiffusionError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted; the same command goes on where a training or an evaluation was", file=sys.stderr)
            raise SystemExit(128 + signal.SIGINT) from None

    return guarded


@friendly
def run_script(main: Callable[[], Any], config_dir: Path, config_name: str) -> None:
    """Runs a Hydra script after checking its overrides."""
    store_environments()
    if not any(item in ("--help", "-h", "--hydra-help", "--info", "--cfg") for item in sys.argv[1:]):
        flagged = ["plan=true" if item == PLAN_FLAG else item for item in sys.argv[1:]]
        sys.argv[1:] = renamed_overrides(flagged)
        check_overrides(config_dir, config_name, sys.argv[1:])
    main()
