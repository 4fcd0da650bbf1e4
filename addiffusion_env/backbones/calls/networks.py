"""Joins, counts and answers the network calls of a pipeline's open calls."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from addiffusion_env.backbones.calls.guards import with_processors
from addiffusion_env.backbones.calls.joining import Digests, Site, learn, part_key, spread
from addiffusion_env.backbones.calls.open_call import Inputs, NetworkRequest
from addiffusion_env.backbones.calls.recording import flattened
from addiffusion_env.backbones.compiled import bucket_of

NetworkCall = Callable[[NetworkRequest, tuple, dict, list[int], list[int]], Any]
"""Makes a network call: (first request, args, kwargs, rows of each image, their lanes) -> the network's output."""


@dataclass
class Networks:
    """Makes the network calls of open calls, joined where that is known not to change the results.

    Attributes:
        joins: whether calls are joined.
        uneven: whether calls with different numbers of rows are joined.
        sites: the learned batch layout of each form of network call; ``None`` for a form that is never joined.
        network_calls: network calls made so far, by component; a joined one counts once.
        call_network: makes a network call; ``None`` calls the network itself.
        digests: hashes of the values that must be equal in joined calls.
        buckets: batch sizes that a call is padded to by repeating one of its images; empty for no padding.
        compiled: compiled replacement of a network, by the network's ``id``.
    """

    joins: bool = True
    uneven: bool = True
    sites: dict[tuple, Site | None] = field(default_factory=dict)
    network_calls: dict[str, int] = field(default_factory=dict)
    call_network: NetworkCall | None = None
    digests: Digests = field(default_factory=Digests)
    buckets: Sequence[int] = ()
    compiled: Mapping[int, Any] = field(default_factory=dict)
    _blank: dict[Any, Any] = field(default_factory=dict)

    def groups(self, requests: Sequence[NetworkRequest]) -> list[list[int]]:
        """Groups requests, by their position, that one network call answers."""
        if not self.joins or len(requests) == 1:
            return [[at] for at in range(len(requests))]
        groups: dict[Any, list[int]] = {}
        for at, request in enumerate(requests):
            groups.setdefault(self.key(request), []).append(at)
        return list(groups.values())

    def key(self, request: NetworkRequest) -> Any:
        """A key that is equal for requests that can share one call; requests of unknown form are never joined."""
        if request.key is None:
            site, rows = self.sites.get(request.form), self._known_rows(request)
            if site is None or rows is None:
                request.key = ("alone", id(request))
            else:
                parts = site.inputs.parts(of_one_image(request))
                own = [part_key(kind, part, self.digests) for kind, part in parts]
                uneven = None if self.uneven else rows
                request.key = (id(request.module), request.form, request.processors, uneven, *own)
        return request.key

    def _known_rows(self, request: NetworkRequest) -> int | None:
        site = self.sites.get(request.form)
        return None if site is None else site.inputs.rows_of(request.inputs)

    def rows_of(self, request: NetworkRequest) -> int:
        """Number of rows per image of a request; of one of unknown layout the length of its first tensor or list."""
        first = self._known_rows(request) or leading(request)
        return first if isinstance(first, int) else 1 if first is None else len(first)

    def answer(self, requests: Sequence[NetworkRequest], lanes: list[int]) -> tuple[list[Any], list[int]]:
        """Answers requests with one network call: the outputs, and rows per image of each request in all its networks.

        Args:
            requests: requests that can be joined.
            lanes: position of each of their images in the batch that is being evaluated.
        """
        first = requests[0]
        site = self.sites.get(first.form)
        counts = [self.rows_of(request) for request in requests]
        rows = [count for count, request in zip(counts, requests, strict=True) for _ in range(request.lanes)]
        # Padded with whole images, not rows: networks may split their batch by branches.
        more = self._filling(rows) if site is not None and self.joins else 0
        asked = list(requests)
        if more:
            least = requests[counts.index(min(counts))]
            asked += [NetworkRequest(least.site, least.module, of_one_image(least), least.form)] * more
            rows = [*rows, *[min(counts)] * more]
        single = len(asked) == 1 and first.lanes == 1
        if site is None or (single and not self.compiled):
            # A copy: some networks consume a list argument (UNets pop their adapter's residuals).
            [(args, kwargs)] = spread(first.inputs)
        else:
            args, kwargs = site.join(asked, rows, bool(self.compiled))
        name = first.site[0]
        self.network_calls[name] = self.network_calls.get(name, 0) + 1
        with torch.no_grad(), with_processors(first.processors):
            if self.call_network is None:
                answer = first.module(*args, **kwargs)
            else:
                answer = self.call_network(first, args, kwargs, rows, lanes)
        if site is None or single:
            answers = [answer]
        else:
            answers = site.split(answer, rows, [request.lanes for request in asked])[: len(requests)]
        if first.lanes == 1 and (kind := _blank_key(first)) not in self._blank and not holds_state(answers[0]):
            self._blank[kind] = tree_map_only(Tensor, torch.zeros_like, answers[0])
        return answers, [count * networks_run(request) for count, request in zip(counts, requests, strict=True)]

    def _filling(self, counts: Sequence[int]) -> int:
        """Number of images that pad a call; ``counts`` are the rows of each request."""
        missing = bucket_of(sum(counts), self.buckets) - sum(counts)
        return -(-missing // min(counts))

    def learn(self, one: Sequence[tuple[NetworkRequest, Any]], two: Sequence[tuple[NetworkRequest, Any]]) -> None:
        """Learns the batch axes from a step for one image and the same step for two images."""
        if [r.site for r, _ in one] != [r.site for r, _ in two]:
            return
        for (first, answer), (second, other) in zip(one, two, strict=True):
            self.sites[first.form] = None
            if holds_state(answer):  # an output with a cache belongs to one image
                continue
            with suppress(ValueError):
                self.sites[first.form] = Site(learn(first.inputs, second.inputs), learn(answer, other))

    def blank_answer(self, request: NetworkRequest) -> Any:
        """An output of zeros: advances a call to its next step without a network evaluation."""
        kind = _blank_key(request)
        fills_cache = holds_state(request.inputs)  # of keys and values: by the call itself
        if fills_cache or kind not in self._blank:
            args, kwargs = request.inputs
            with torch.no_grad(), with_processors(request.processors):
                answer = request.module(*args, **kwargs)
            if fills_cache or holds_state(answer):
                return answer
            self._blank[kind] = tree_map_only(Tensor, torch.zeros_like, answer)
        return self._blank[kind]


def _blank_key(request: NetworkRequest) -> Any:
    """A key that is equal for requests whose outputs have one shape."""
    first = leading(request)
    if isinstance(first, Tensor):
        return (request.form, first.shape)
    return (request.form, None if first is None else (len(first), first[0].shape))


def of_one_image(request: NetworkRequest) -> Inputs:
    """A request's arguments, those of its first image if there are several."""
    inputs: Inputs = request.inputs if request.lanes == 1 else spread(request.inputs)[0]
    return inputs


def networks_run(request: NetworkRequest) -> int:
    """Number of networks that a component runs in one call: a MultiControlNet one for each of its images."""
    images = request.inputs[1].get("controlnet_cond")
    return len(images) if hasattr(request.module, "nets") and isinstance(images, list | tuple) else 1


def holds_state(value: Any) -> bool:
    """Whether arguments hold an object that is neither a tensor nor a plain value, such as a cache."""
    plain = Tensor | bool | int | float | str | bytes | torch.dtype | torch.device | torch.Generator | torch.Size | None
    return not all(isinstance(part, plain) for part in flattened(value)[0])


def leading(request: NetworkRequest) -> Any:
    """The first argument that is a tensor with axes, or a list of tensors; ``None`` if there is none."""
    args, kwargs = request.inputs
    for value in (*args, *kwargs.values()):
        listed = isinstance(value, list) and value and isinstance(value[0], Tensor)
        if listed or (isinstance(value, Tensor) and value.ndim > 1):
            return value
    return None


def warn_not_joined(pipe: Any, reason: str) -> None:
    """Warns that calls are not joined, which makes them slower."""
    warnings.warn(
        f"network calls of a {type(pipe).__name__} are not joined: {reason}\n  -> every image takes its own network "
        "calls: the images are the same, the speed is that of generating them one after the other",
        UserWarning,
        stacklevel=4,
    )
