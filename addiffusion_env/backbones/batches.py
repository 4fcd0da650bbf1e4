"""What a backbone takes and gives, batch first: latents, the state of their solver, encoded prompts, predictions.

Rows are taken from their batch only when they are read. A step of 64 lanes would otherwise slice every tensor 64 times
and join the slices again for the next step. Here a lane holds (batch, index); joining the rows of one batch returns the
batch itself, or one selection of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from addiffusion_env.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self

Value = TypeVar("Value")


def evolved(value: Value, **changes: Any) -> Value:
    """:func:`dataclasses.replace` for values without derived attributes: a tenth of its time, nothing is checked."""
    made = object.__new__(type(value))
    made.__dict__.update(value.__dict__)
    made.__dict__.update(changes)
    return made


class Batched:
    """Base class of frozen dataclasses whose fields are batch first: tensors, arrays, tuples, mappings of tensors.

    Fields have no class-level defaults (use ``default_factory``), so that a missing one is read from the batch.
    """

    def row(self, index: int) -> Self:
        """One image, as a batch of one; its tensors are views, its arrays copies."""
        made = object.__new__(type(self))
        # The only row of a row is that row, so that all rows of a batch have one parent.
        made.__dict__["_place"] = self.__dict__.get("_place") or (self, index if index >= 0 else index + len(self))
        return made

    def rows(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The images ``indices``, in that order; a copy, except of tensors that hold or repeat a single row."""
        index = np.asarray(indices, dtype=np.intp)
        made = object.__new__(type(self))
        made.__dict__.update({name: _taken(getattr(self, name), index) for name in _names(type(self))})
        return made

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Joins batches into one; rows of one batch in its order are the batch itself."""
        whole = parts[0].__dict__.get("_place", (None,))[0]
        if whole is not None and len(whole) == len(parts):  # most often the lanes of the last step, in their order
            places = ((part.__dict__.get("_place"), at) for at, part in enumerate(parts))
            if all(place is not None and place[0] is whole and place[1] == at for place, at in places):
                return whole
        groups: dict[int, tuple[Self, list[int]]] = {}
        order: list[tuple[int, int]] = []  # (group, row in it) of each image
        for part in parts:
            place = part.__dict__.get("_place")
            batch, own = (part, range(len(part))) if place is None else (place[0], (place[1],))
            _, rows = groups.setdefault(id(batch), (batch, []))
            order += [(id(batch), len(rows) + at) for at in range(len(own))]
            rows += own
        taken = {
            key: batch if rows == [*range(len(batch))] else batch.rows(rows) for key, (batch, rows) in groups.items()
        }
        if len(taken) == 1:
            return next(iter(taken.values()))
        joined = object.__new__(cls)
        for name in _names(cls):
            joined.__dict__[name] = _joined([getattr(part, name) for part in taken.values()])
        starts, start = {}, 0
        for key, part in taken.items():
            starts[key], start = start, start + len(part)
        index = [starts[key] + row for key, row in order]
        return joined if index == [*range(len(index))] else joined.rows(index)

    def __getattr__(self, name: str) -> Any:
        """An attribute of a row that has not been read before."""
        place = self.__dict__.get("_place")
        if place is None or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        batch, index = place
        found = self.__dict__[name] = _row(getattr(batch, name), index)
        return found

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: a row is stored without its batch."""
        return {name: getattr(self, name) for name in _names(type(self))}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)

    def __len__(self) -> int:
        raise NotImplementedError


# Typed as a plain function of a class: mypy takes a class without a metaclass for unhashable (``cache``'s own type).
_names: Callable[[type], tuple[str, ...]] = cache(lambda kind: tuple(item.name for item in fields(kind)))


OFF_PLAN = -1
"""``index`` of a pipeline's scheduler that is not at a step of its plan."""


@dataclass(frozen=True)
class History(Batched):
    """The state of a multistep solver for each lane: its last two predictions.

    Attributes:
        x0: (B, C, H, W) the previous clean prediction; meaningless where ``sigma`` is NaN.
        sigma: (B,) float64, the noise level of that prediction; NaN where there is no previous step.
        older_x0: (B, C, H, W) the clean prediction before that one; meaningless where ``older_sigma`` is NaN.
        older_sigma: (B,) float64, its noise level; NaN where there are fewer than two previous steps.
        scheduler: for each lane the state of the pipeline's own scheduler (``solver="scheduler"``) as plain values;
            ``None`` where that scheduler has not been used.
    """

    x0: Tensor
    sigma: Tensor
    older_x0: Tensor
    older_sigma: Tensor
    scheduler: tuple[Mapping[str, Any] | None, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if not self.scheduler:
            object.__setattr__(self, "scheduler", (None,) * len(self.x0))

    @classmethod
    def none(cls, like: Tensor) -> History:
        """An empty history for (B, C, H, W) latents: the next step of a multistep solver is first order."""
        return _empty_history(like.shape, like.dtype, like.device)

    def then(self, x0: Tensor, sigma: Tensor) -> History:
        """The history after one more prediction: ``x0`` (B, C, H, W) at noise levels ``sigma`` (B,)."""
        return History(x0, sigma, self.x0, self.sigma)

    def off_plan(self) -> tuple[Mapping[str, Any] | None, ...]:
        """The state of the pipelines' schedulers off their plans: only their random generators are kept."""
        return tuple(None if state is None else {**state, "index": OFF_PLAN, "values": {}} for state in self.scheduler)

    def __len__(self) -> int:
        return len(self.sigma)


@lru_cache(maxsize=64)
def _empty_history(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> History:
    """One for all lanes: every resampling begins with it, and nothing is written in place."""
    nothing = torch.full((shape[0],), float("nan"), dtype=torch.float64)
    zeros = torch.zeros((), dtype=dtype, device=device).expand(shape)
    return History(zeros, nothing, zeros, nothing)


HISTORY_TENSORS = tuple(item.name for item in fields(History) if item.name != "scheduler")


@dataclass(frozen=True)
class Latents(Batched):
    """The denoising state of a batch of images.

    Attributes:
        x: (B, C, H, W) noisy latents.
        sigma: (B,) float64 on the CPU, noise levels; see :mod:`addiffusion_env.backbones.schedules`.
        history: solver state of each row.
    """

    x: Tensor
    sigma: Tensor
    history: History

    @classmethod
    def start(cls, x: Tensor, sigma: Tensor) -> Latents:
        """Latents without history."""
        return cls(x, sigma.to(torch.float64), History.none(x))

    def renewed(self, x: Tensor, sigma: Tensor) -> Latents:
        """Other latents without history; the noise of a stochastic scheduler continues where it was."""
        kept = self.history.off_plan()
        history = History.none(x)
        return Latents(x, sigma.to(torch.float64), replace(history, scheduler=kept) if any(kept) else history)

    def __len__(self) -> int:
        return len(self.sigma)


@dataclass(frozen=True)
class Conditioning(Batched):
    """Encoded prompts: named tensors, batch first.

    Attributes:
        tensors: for example ``text`` (B, tokens, D) and, with guidance, ``negative`` (B, tokens, D).
        content: for each prompt the positions of its content tokens (no special tokens, no stop words), in order.
        requests: the backbone's own objects for each prompt that are not tensors (open pipeline calls).
    """

    tensors: Mapping[str, Tensor]
    content: tuple[tuple[int, ...], ...]
    requests: tuple[Any, ...] = field(default_factory=tuple)

    def __len__(self) -> int:
        return len(self.content)

    @property
    def steps(self) -> int | None:
        """Number of steps of the first image's schedule, which open pipeline calls depend on; ``None`` without them."""
        return self.requests[0].steps if self.requests else None


@dataclass(frozen=True)
class Prediction:
    """The denoiser's output for a batch of noisy latents.

    Attributes:
        x0: (B, C, H, W) predicted clean latents, with guidance applied where it was requested.
        calls: (B,) int64 network rows spent on each image: usually 2 with guidance, 1 without.
        attention: (B, tokens, h, w) share of each image cell's attention that goes to each text token, averaged over
            layers and heads at the grid of ``Capabilities.attention_grid``; ``None`` unless requested. Rows that did
            not request it hold zeros.
        features: (B, ``Capabilities.feature_dim``) float32, the middle block's output under the prompt, averaged over
            the image; ``None`` when the model has none.
        steps: for each row the arguments of the pipeline's own scheduler step; empty if the backbone has none.
    """

    x0: Tensor
    calls: Tensor
    attention: Tensor | None = None
    features: Tensor | None = None
    steps: tuple[Any, ...] = ()


class FeatureHook:
    """Stores the pooled output of one module of a denoiser from its last call, for :attr:`Prediction.features`.

    The features are by-products of an evaluation, so a policy that reads them needs neither a preview nor a scorer.
    Baranchuk et al. 2022 (arXiv:2112.03126) studied them as inputs of small networks. It is a permanent forward hook:
    ``torch.compile`` traces only the hooks that are registered at the first call.

    Attributes:
        pooled: (N, C) float32, the mean over cells or tokens; ``None`` when the module has not run.
    """

    def __init__(self) -> None:
        self.pooled: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Pools (N, C, h, w) of a UNet's block, or (N, tokens, C) of a transformer's, the image tokens last."""
        value: Tensor = (output[-1] if isinstance(output, tuple) else output).detach()
        self.pooled = value.mean(dim=(2, 3) if value.ndim == 4 else 1, dtype=torch.float32)

    def take(self, rows: int) -> Tensor | None:
        """Returns (rows, C), the features of the first rows, and clears the store."""
        pooled, self.pooled = self.pooled, None
        # A copy: CUDA graphs write the next call's into the same memory.
        return None if pooled is None else pooled[:rows].clone()


def hook(module: nn.Module) -> FeatureHook:
    """The module's feature hook, registered if it has none. Backbones that share a denoiser share the hook."""
    for hook in module._forward_hooks.values():
        if isinstance(hook, FeatureHook):
            return hook
    made = FeatureHook()
    module.register_forward_hook(made)
    return made


def cat_rows(values: Sequence[Tensor]) -> Tensor:
    """``torch.cat`` of rows.

    Raises:
        ConfigError: for images of different sizes.
    """
    try:
        return torch.cat(list(values))
    except RuntimeError as error:
        shapes = {tuple(value.shape[1:]) for value in values}
        if len(shapes) == 1:  # out of memory
            raise
        raise ConfigError(
            f"images of one batch differ in size: {', '.join(map(str, sorted(shapes)))} (latents or conditioning)",
            "give them one size (height=, width=, images of one size), or generate each size in its own call",
        ) from error


def finite_rows(values: Tensor) -> Tensor:
    """(B,) bool: whether all numbers of a row of (B, ...) are finite, in a sixth of the time of ``torch.isfinite``."""
    flat = values.flatten(1)
    return torch.isfinite(flat.amax(1)) & torch.isfinite(flat.amin(1))  # NaN is larger, and smaller, than all


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *size), antialiased; the same tensor when it has that size."""
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x.float(), size=size, mode="bilinear", align_corners=False, antialias=True)


def _row(value: Any, index: int) -> Any:
    if isinstance(value, Batched):
        return value.row(index)
    if isinstance(value, Mapping):
        return {name: _row(part, index) for name, part in value.items()}
    found = value[index : index + 1]
    return found.copy() if isinstance(found, np.ndarray) else found


def _taken(value: Any, index: np.ndarray) -> Any:
    if isinstance(value, Tensor):
        if _repeats(value):
            return value[:1].expand(len(index), *value.shape[1:])
        if len(index) == 1:  # a third of the time of a selection
            return value[index[0] : index[0] + 1].clone(memory_format=torch.contiguous_format)
        return value.index_select(0, torch.from_numpy(index).to(value.device))
    if isinstance(value, Batched):
        return value.rows(index)
    if isinstance(value, Mapping):
        return {name: _taken(part, index) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(value[at] for at in index.tolist()) if value else ()
    return value[index]


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        key = (first.data_ptr(), first.shape[1:], first.stride()[1:])
        if all(_repeats(value) and (value.data_ptr(), value.shape[1:], value.stride()[1:]) == key for value in values):
            return first[:1].expand(sum(map(len, values)), *first.shape[1:])
        return cat_rows(values)
    if isinstance(first, Batched):
        return type(first).cat(values)
    if isinstance(first, Mapping):
        return {name: _joined([value[name] for value in values]) for name in first}
    return tuple(part for value in values for part in value) if isinstance(first, tuple) else np.concatenate(values)


def _repeats(value: Tensor) -> bool:
    """Whether a tensor is one row, or one row repeated without copies (the empty negative prompt)."""
    return len(value) == 1 or value.stride(0) == 0
