"""Identity of a component by value: the weights, adapters and settings that determine its results.

Everything that is stored (records, tables, encoded prompts) is keyed by the identity of the components that produced
it, so that a different checkpoint under the same name has a different key. docs/caches.md lists every cache with its
key.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import addiffusion_env
from addiffusion_env.backbones import Identified
from addiffusion_env.backbones.fingerprint import bytes_of, digest_of, name_of, settings_of, weights_digest, weights_of

DEEPEST = 12
"""Maximum nesting depth of described objects."""

SHOWN = 6
"""Maximum number of differences that messages list."""

DECISIVE = (
    *("class", "arguments", "weights", "adapter_scales", "dtype", "device", "vocabulary", "mean", "std"),
    *("prediction_type", "beta_schedule", "beta_start", "beta_end", "shift", "scaling_factor", "shift_factor"),
)
"""Entries of an identity that decide results up to rounding, all of them as they stand in files."""

SECRET = re.compile(r"(^|_)(key|token|secret|password)$", re.IGNORECASE)
"""Attributes that are never included, since an identity is stored in a readable file."""

FOREIGN = ("name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "id2label", "label2id")
RETURNED = ("output_attentions", "output_hidden_states", "return_dict", "use_cache")
"""Entries of a model's configuration about its origin, its output format, or facts that its weights determine."""


def described(value: Any) -> Any:
    """Any value as plain JSON: equal for equal content, independent of the object, the process and the folder.

    Modules are described by class, configuration, weights and adapters, tensors and arrays by their content, other
    objects by class and attributes; attributes whose name ends in ``key``, ``token``, ``secret`` or ``password`` are
    omitted. Further occurrences of a module refer to the path of the first.

    >>> described({"b": (1, None), "a": torch.float16})
    {'b': [1, None], 'a': 'torch.float16'}
    """
    return _Describer().of(value, "", ())


def attributes_of(component: Identified) -> dict[str, Any]:
    """The class of a component and its attributes, each as :func:`described`: its identity, unless it has its own."""
    return _Describer().held(component)


def identity_of(**parts: Any) -> dict[str, Any]:
    """The identity of named components, each as :func:`described`, and the versions of their ``packages``."""
    found = {name: described(part) for name, part in parts.items()}
    return {**found, "packages": packages(found)}


def results_digest(identity: Mapping[str, Any]) -> str:
    """sha256 of what decides a component's results up to rounding: classes, weights, precision, :data:`DECISIVE`.

    Unlike the whole identity it is the same for other versions of code and packages, and for processors that compute
    other last digits of a noise schedule.

    Args:
        identity: of the component, as :func:`described`.
    """
    found = list(_entries(identity, DECISIVE))
    if all(key == "class" for key, _ in found):  # it describes itself, for example by the content of an engine's file
        return digest_of(identity)
    # Of a class the name alone: its module may move in another version.
    named = ([key, str(value).rpartition(".")[2] if key == "class" else value] for key, value in found)
    return digest_of(sorted(map(json.dumps, named)))


def packages(identity: Any) -> dict[str, str]:
    """Installed package -> version, for all classes in an identity; without the local version label (``+cu130``)."""
    found = {}
    for name in sorted({str(kind).partition(".")[0] for _, kind in _entries(identity, ("class",))} | {"torch"}):
        for distribution in _distributions().get(name, ()):
            found[distribution] = metadata.version(distribution).partition("+")[0]
    found.pop("addiffusion-env", None)  # the installed version may be older than the running code
    return {**found, "addiffusion-env": addiffusion_env.__version__}


def networks_in(identity: Any, place: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(dotted path, description) of each module in an identity; a module shared within a component is yielded once."""
    if isinstance(identity, Mapping):
        if "weights" in identity and "dtype" in identity:
            yield place, identity
            return
        for key, value in identity.items():
            yield from networks_in(value, f"{place}.{key}".lstrip("."))
    elif isinstance(identity, list):
        for number, value in enumerate(identity):
            yield from networks_in(value, f"{place}.{number}")


def differences(before: Any, after: Any) -> list[str]:
    """The differences of two identities, one line each; hashes are abbreviated.

    >>> differences({"unet": {"weights": "ab" * 32, "dtype": "float32"}}, {"unet": {"weights": "cd" * 32}})
    ['unet.weights: abababababab -> cdcdcdcdcdcd', 'unet.dtype: float32 -> nothing']
    """
    old, new = dict(_flat(before)), dict(_flat(after))
    return [
        f"{path}: {_short(old, path)} -> {_short(new, path)}"
        for path in dict.fromkeys((*old, *new))
        if path not in old or path not in new or json.dumps(old[path]) != json.dumps(new[path])  # NaN is NaN
    ]


def difference_words(before: Any, after: Any) -> str:
    """The first few differences of two identities, on one line."""
    return listed(differences(before, after))


def listed(lines: Sequence[str]) -> str:
    """The first few entries of a list of differences, on one line."""
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more


class _Describer:
    """One pass over a component; records the path of each module's first occurrence."""

    def __init__(self) -> None:
        self.places: dict[int, str] = {}

    def held(self, value: Any, place: str = "", within: tuple[int, ...] = ()) -> dict[str, Any]:
        """Class and attributes of an object."""
        kind, found = type(value), _class_of(value)
        within = (*within, id(value))
        left_out = {name for base in kind.__mro__ for name in vars(base).get("not_identity", ())}
        for name, item in vars(value).items():
            if name not in left_out and not SECRET.search(name):
                found[name] = self.of(item, f"{place}.{name}".lstrip("."), within)
        return found

    def of(self, value: Any, place: str, within: tuple[int, ...]) -> Any:
        """One value as plain JSON."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if id(value) in within or len(within) > DEEPEST:
            return name_of(type(value))
        if isinstance(value, Identified):
            default = type(value).identity is Identified.identity
            return self.held(value, place, within) if default else self.of(value.identity, place, (*within, id(value)))
        if isinstance(value, torch.device):
            return value.type
        if isinstance(value, torch.dtype | Path):
            return str(value)
        if isinstance(value, bytes):
            return hashlib.sha256(value).hexdigest()
        if isinstance(value, nn.Module):
            return self._module(value, place, within)
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in "biufc":
            return self.of(value.tolist(), place, within)
        if isinstance(value, Tensor | np.ndarray | np.generic):
            tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
            return {"shape": list(tensor.shape), "content": hashlib.sha256(bytes_of(tensor)).hexdigest()}
        if isinstance(value, Mapping):
            inside = (*within, id(value))
            return {
                str(key): self.of(item, f"{place}.{key}".lstrip("."), inside)
                for key, item in value.items()
                if not SECRET.search(str(key))
            }
        if isinstance(value, Sequence):
            return [self.of(item, f"{place}.{n}", (*within, id(value))) for n, item in enumerate(value)]
        if isinstance(value, Set):
            return sorted((self.of(item, place, within) for item in value), key=str)
        return self._object(value, place, within)

    def _object(self, value: Any, place: str, within: tuple[int, ...]) -> Any:
        if isinstance(value, type | types.BuiltinFunctionType | types.ModuleType):
            return name_of(value)
        if isinstance(value, types.MethodType):
            return {"method": value.__name__, "of": self.of(value.__self__, place, within)}
        if isinstance(value, functools.partial):
            return [self.of(item, place, within) for item in (value.func, value.args, value.keywords)]
        if isinstance(value, types.FunctionType):
            kept = (*_closed_over(value), *(value.__defaults__ or ()))
            held = [self.of(item, place, (*within, id(value))) for item in kept]
            source = _source(value)
            more = {**({"source": source} if source else {}), **({"holds": held} if held else {})}
            return {"function": name_of(value), **more} if more else name_of(value)
        own = getattr(value, "identity", None)
        if isinstance(own, str | Mapping):  # a feature network, a client of a service
            return self.of(own, place, (*within, id(value)))
        if _is_tokenizer(value):
            return {"class": name_of(type(value)), "vocabulary": _vocabulary(value)}
        if isinstance(getattr(value, "components", None), Mapping):  # a diffusers pipeline
            parts = self.of(value.components, place, (*within, id(value)))
            plain = {k: v for k, v in _config(getattr(value, "config", {})).items() if k not in parts}
            return {**_class_of(value), **plain, **parts}
        if hasattr(value, "config") and hasattr(value, "save_config"):  # a diffusers scheduler
            settings = {"class": name_of(type(value)), "config": _config(value.config)}
            # Stored outside the configuration, and read by backbones: set_shift, rescaled betas.
            set_apart = {name: getattr(value, name) for name in ("shift", "alphas_cumprod") if hasattr(value, name)}
            return {**settings, **self.of(set_apart, place, within)}
        if not hasattr(value, "__dict__") and not is_dataclass(value):
            return name_of(type(value))
        if is_dataclass(value) and not hasattr(value, "__dict__"):
            slots = {item.name: getattr(value, item.name) for item in fields(value)}
            return {"class": name_of(type(value)), **self.of(slots, place, (*within, id(value)))}
        found = self.held(value, place, within)
        if is_dataclass(value) or found["class"].startswith("addiffusion_env."):
            return found
        return {"class": found["class"], "content": digest_of(found)}  # a library's object: only its hash

    def _module(self, module: nn.Module, place: str, within: tuple[int, ...]) -> Any:
        compiled = getattr(module, "_orig_mod", None)
        if isinstance(compiled, nn.Module):
            return {"compiled": self.of(compiled, place, within)}
        first = self.places.setdefault(id(module), place)
        if first != place:
            return {"same as": first}
        found = _class_of(module)
        config: Any = getattr(module, "config", None)
        config = config.to_dict() if hasattr(config, "to_dict") else config
        if isinstance(config, Mapping):
            found["config"] = _config(config)
        found["dtype"] = sorted({str(value.dtype) for _, value in weights_of(module)})
        found["weights"] = weights_digest(module)
        settings = settings_of(module)
        scales = {str(value) for name, value in settings.items() if name.endswith(".scaling") and type(value) is dict}
        if scales:  # PEFT's, by name of the adapter
            found["adapter_scales"] = sorted(scales)
        found["settings"] = digest_of(settings)
        return found


def _class_of(value: Any) -> dict[str, Any]:
    kind: Any = type(value)
    source = _source(kind)
    return {"class": name_of(kind), **({"source": source} if source else {})}


def _closed_over(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty closure cell
            yield cell.cell_contents


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's or scheduler's configuration without its origin."""
    kept = {k: v for k, v in config.items() if k[0] != "_" and k not in FOREIGN + RETURNED}
    return {str(key): _config(value) if isinstance(value, Mapping) else described(value) for key, value in kept.items()}


def _is_tokenizer(value: Any) -> bool:
    return callable(getattr(value, "get_vocab", None)) or (hasattr(value, "bpe_ranks") and hasattr(value, "encoder"))


def _vocabulary(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Truncation and padding are settings of the last call.
        rules = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("truncation", "padding")}
    elif hasattr(tokenizer, "bpe_ranks"):  # open_clip's own
        rules = {"vocabulary": dict(tokenizer.encoder), "merges": [str(pair) for pair in tokenizer.bpe_ranks]}
    else:
        rules = {"vocabulary": tokenizer.get_vocab()}
    length = getattr(tokenizer, "model_max_length", getattr(tokenizer, "context_length", None))
    return digest_of([rules, str(length), getattr(tokenizer, "padding_side", None)])


@functools.lru_cache(maxsize=256)
def _source(kind: Any) -> str | None:
    """sha256 of the source of a class or function outside installed packages, which may change at any time."""
    top = kind.__module__.partition(".")[0]
    if top == "addiffusion_env" or top in sys.stdlib_module_names - {"__main__"} or top in _distributions():
        return None
    try:
        return hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()
    except (OSError, TypeError):  # typed at a prompt, or compiled
        return None


@functools.cache
def _distributions() -> Mapping[str, Sequence[str]]:
    return {name: sorted(set(found)) for name, found in metadata.packages_distributions().items()}


def _entries(identity: Any, keys: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """(key, value) of all entries under some keys, at any depth but inside one another."""
    if isinstance(identity, Mapping):
        for key, value in identity.items():
            if key in keys:
                yield key, value
            else:
                yield from _entries(value, keys)
    elif isinstance(identity, list):
        for value in identity:
            yield from _entries(value, keys)


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{place}.{key}".lstrip("."))
    else:
        yield place, value


def _short(found: Mapping[str, Any], place: str) -> str:
    if place not in found:
        return "nothing"
    text = str(found[place])
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text[:80]
