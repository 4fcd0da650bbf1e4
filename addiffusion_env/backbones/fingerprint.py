"""Identity and change detection of modules: a hash of their weights, and a checksum that is cheap to recompute.

:func:`weights_digest` hashes every byte: exact, the same on every device. :func:`fingerprint` sums each weight's bits
on its device, at memory bandwidth: cheap enough to compute before each use of a :class:`LruCache` of results.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

IDLE = ("training", "gradient_checkpointing")
"""Numeric attributes of a module that do not affect its output in inference."""

ADAPTERS = ("_active_adapter", "_disable_adapters", "merged_adapters")
"""Attributes of a layer with PEFT adapters other than their weights and scales (``scaling``)."""

WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes per element -> the integer type of that size."""

PLAIN = (Tensor, nn.Parameter)
"""Types of tensors that store their own bits."""

SAMPLE = 256
"""Entries of each weight that :func:`sampled` reads."""

Value = TypeVar("Value")

_digests: weakref.WeakKeyDictionary[nn.Module, tuple[Any, str]] = weakref.WeakKeyDictionary()


def digest_of(value: Any) -> str:
    """The sha256 of plain JSON values (64 hex digits), independent of the order of keys.

    >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1}) != digest_of({"a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def name_of(kind: Any) -> str:
    """Module and name of a class or function; for this package only the name, since its files may be moved.

    >>> name_of(json.JSONDecoder), name_of(digest_of)
    ('json.decoder.JSONDecoder', 'addiffusion_env.digest_of')
    """
    module = getattr(kind, "__module__", None) or "builtins"
    own = module.partition(".")[0]
    return f"{own if own == 'addiffusion_env' else module}.{getattr(kind, '__qualname__', kind)}"


def weights_digest(module: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of a module's parameters and persistent buffers.

    It does not depend on the device, nor on whether accelerate has offloaded the weights. Cached until
    :func:`fingerprint` changes; hashing takes about 1 s per GB and core, on up to eight cores.
    """
    state = (fingerprint(module), [value.data_ptr() for _, value in weights_of(module)])
    known = _digests.get(module)
    if known is not None and known[0] == state:
        return known[1]
    weights = list(weights_of(module))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashlib lets other threads run
        hashes = list(pool.map(lambda entry: hashlib.sha256(bytes_of(entry[1])).hexdigest(), weights))
    found = digest_of([[name, str(value.dtype), list(value.shape)] for name, value in weights] + hashes)
    _digests[module] = (state, found)
    return found


def fingerprint(*parts: Any) -> tuple[Any, ...]:
    """The current state of modules and tokenizers, to detect changes: a key for caches in this process.

    For a module, the exact sum of each weight's bits, its device, and the numeric attributes of its layers (including
    scales of adapters); for a tokenizer, its size. Edits through ``.data`` are detected, which torch's version counters
    do not count, and weights that were moved to another device and back compare equal. It takes one pass over the
    memory: more than 10 GB/s on one core.
    """
    return tuple(_state(part) if isinstance(part, nn.Module) else _size(part) for part in parts)


def sampled(*parts: Any) -> tuple[Any, ...]:
    """Like :func:`fingerprint`, from a sample of each weight: for large models that are checked at each prompt.

    Torch's version counters detect every in-place edit, and the sample detects edits through ``.data``, unless they
    change only a few entries of a weight. For adapters (PEFT) it covers :func:`adapters_in`.
    """
    return tuple(_sampled_state(part) if isinstance(part, nn.Module) else _size(part) for part in parts)


def adapters_in(module: nn.Module) -> tuple[Any, ...]:
    """The active adapter state (PEFT) of a network: for each layer the scales, and which are enabled or merged."""
    found = []
    for layer in layers_of(module):
        held = layer.__dict__
        if type(held.get("scaling")) is dict:
            # A scale that is set for one call and taken back leaves rounding.
            scales = _rounded({name: float(scale) for name, scale in held["scaling"].items()})
            found.append((tuple(scales.items()), *(str(held.get(name)) for name in ADAPTERS)))
    return tuple(found)


def versions_of(module: nn.Module) -> tuple[Any, ...]:
    """Memory addresses and version counters of a module's weights: cheaper than :func:`fingerprint`.

    For models that are not edited after loading and are checked at every preview; edits through ``.data`` are missed.
    """
    return tuple([(value.data_ptr(), _version(value)) for value in _tensors_of(module)])


def settings_of(module: nn.Module) -> dict[str, Any]:
    """Numeric attributes of a module's layers other than weights: dotted name -> value (scales of FreeU and PEFT)."""
    found = {}
    for place, layer in module.named_modules():
        for name, value in vars(layer).items():
            if name in ADAPTERS or (name[0] != "_" and name not in IDLE and _numeric(value)):
                # A scale that is set for one call and taken back leaves rounding.
                found[f"{place}.{name}"] = _rounded(value) if name == "scaling" else _plain(value)
            elif name == "processor":  # of attention: IP-Adapters store their scale there
                held = {key: _plain(item) for key, item in vars(value).items() if _numeric(item)}
                found[f"{place}.{name}"] = {"class": name_of(type(value)), **held}
    return found


def _state(module: nn.Module) -> tuple[Any, ...]:
    weights = [value for _, value in weights_of(module)]
    versions = tuple(_version(value) for value in weights)
    sums = [_sum(value) for value in weights]
    by_device: dict[torch.device, list[Tensor]] = {}
    for value in sums:
        by_device.setdefault(value.device, []).append(value)
    # One synchronisation per device, not one per weight.
    read = tuple((device.type, *torch.stack(values).tolist()) for device, values in by_device.items())
    return (name_of(type(module)), versions, read, json.dumps(settings_of(module), sort_keys=True))


@torch.no_grad()
def _sampled_state(module: nn.Module) -> tuple[Any, ...]:
    versions, groups = [], {}  # type: ignore[var-annotated]
    for value in _tensors_of(module):
        versions.append(_version(value))
        count = value.numel()
        if type(value) in PLAIN and count and not value.is_complex() and value.is_contiguous():
            step = -(-count // SAMPLE)
            part = value.as_strided((-(-count // step),), (step,), value.storage_offset())
            groups.setdefault((value.device, value.dtype), []).append(part)
            continue
        for part in _plain_tensors(value):
            groups.setdefault((part.device, torch.int64), []).append(_sum(part).reshape(1))
    joined = (torch.cat(group) for group in groups.values())
    sums = tuple(int(part.view(WORDS[part.element_size()]).sum(dtype=torch.int64)) for part in joined)
    return (name_of(type(module)), tuple(versions), sums, adapters_in(module))


def layers_of(module: nn.Module) -> list[nn.Module]:
    """A module's layers, like ``modules()``, whose nested generators take ten times as long."""
    found = [module]
    for layer in found:
        if layer._modules:
            found += [part for part in layer._modules.values() if part is not None]
    return found


def _tensors_of(module: nn.Module) -> list[Tensor]:
    """The tensors of :func:`weights_of`, without their names."""
    found = []
    for layer in layers_of(module):
        if not (layer._parameters or layer._buffers):
            continue
        hidden = layer._non_persistent_buffers_set
        for name, value in (*layer._parameters.items(), *layer._buffers.items()):
            if value is not None and name not in hidden:
                found.append(_stored(layer, name, value) if value.is_meta else value)
    return found


def _version(value: Tensor) -> int:
    return 0 if value.is_inference() else value._version  # inference tensors have no version counter


def _sum(value: Tensor) -> Tensor:
    """The exact sum of a tensor's bits as integers modulo 2^64, computed on its device."""
    sums = []
    for part in _plain_tensors(value):
        part = torch.view_as_real(part.detach()) if part.is_complex() else part.detach()
        if part.ndim == 4 and part.is_contiguous(memory_format=torch.channels_last):
            part = part.permute(0, 2, 3, 1)
        size = part.element_size()
        if part.is_contiguous() and not (part.numel() * size % 8 or part.storage_offset() * size % 8):
            sums.append(part.reshape(-1).view(torch.int64).sum())  # the fewest additions
        else:
            sums.append(part.view(WORDS[size]).sum(dtype=torch.int64))
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum()


def bytes_of(value: Tensor) -> bytes | memoryview:
    """A tensor's bytes in the order of its elements, independent of its layout and device."""
    parts = [part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for part in _plain_tensors(value)]
    return parts[0].data if len(parts) == 1 else b"".join(part.tobytes() for part in parts)


def _plain_tensors(value: Tensor) -> Iterator[Tensor]:
    """The plain tensors that store a tensor's bits: itself, or the components of a quantised one."""
    if not hasattr(value, "__tensor_flatten__"):
        yield value.as_subclass(Tensor) if type(value) is not Tensor else value
        return
    names, _ = value.__tensor_flatten__()
    for name in names:
        yield from _plain_tensors(getattr(value, name))


def weights_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of each parameter and persistent buffer in the module's order, including offloaded ones."""
    for place, layer in module.named_modules():
        kept = {**layer._parameters, **layer._buffers}
        for name, value in kept.items():
            if value is None or name in layer._non_persistent_buffers_set:
                continue
            if value.device.type == "meta":
                value = _stored(layer, name, value)
            yield f"{place}.{name}".lstrip("."), value


def _stored(layer: nn.Module, name: str, value: Tensor) -> Tensor:
    """The stored copy of a layer's weight that accelerate has offloaded (``offload=sequential``)."""
    hook: Any = getattr(layer, "_hf_hook", None)
    for one in getattr(hook, "hooks", [hook]):
        store = getattr(one, "weights_map", None)
        if store is not None:
            return store[name]
    return torch.zeros(0, dtype=value.dtype)  # it stays on the meta device, without content


def _numeric(value: Any) -> bool:
    kind = type(value)
    if kind in (bool, int, float):
        return True
    if kind is dict:
        return all(type(key) is str and _numeric(item) for key, item in value.items())
    return kind in (list, tuple) and all(map(_numeric, value))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _rounded(scales: Any) -> Any:
    if isinstance(scales, dict):
        return {key: _rounded(value) for key, value in scales.items()}
    return round(scales, 5) if isinstance(scales, float) else _plain(scales)


def _size(tokenizer: Any) -> tuple[Any, ...]:
    size = len(tokenizer) if hasattr(tokenizer, "__len__") else None
    return (id(tokenizer), size, getattr(tokenizer, "model_max_length", None))


class LruCache(Generic[Value]):
    """Keeps at most ``capacity`` values; the least recently used one is evicted first.

    >>> cache = LruCache(2)
    >>> for key in "aba": cache[key] = key.upper()
    >>> cache["c"] = "C"
    >>> cache.get("a"), cache.get("b"), "c" in cache
    ('A', None, True)
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._items: OrderedDict[Hashable, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._items

    def __setitem__(self, key: Hashable, value: Value) -> None:
        self._items[key] = value
        self._items.move_to_end(key)
        while len(self._items) > self.capacity:
            self._items.popitem(last=False)

    def get(self, key: Hashable) -> Value | None:
        """The value of ``key``, which becomes the most recently used, or ``None``."""
        if key in self._items:
            self._items.move_to_end(key)
        return self._items.get(key)

    def clear(self) -> None:
        """Removes all values."""
        self._items.clear()
