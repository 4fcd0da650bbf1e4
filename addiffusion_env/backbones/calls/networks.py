"""Joins, counts and answers the network calls of a pipeline's open calls."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from addiffusion_env.backbones.calls.joining import (
    Digests,
    Form,
    Site,
    first_of,
    form_of,
    group_key,
    joined_request,
    learn,
    request_rows,
    split,
)
from addiffusion_env.backbones.calls.open_call import NetworkRequest
from addiffusion_env.backbones.calls.trees import entries, with_tensors
from addiffusion_env.backbones.compiled import bucket_of

NetworkCall = Callable[[NetworkRequest, tuple, dict, list[int], list[int]], Any]
"""Makes a network call: (first request, args, kwargs, rows of each request, their lanes) -> the network's output."""


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
    sites: dict[Form, Site | None] = field(default_factory=dict)
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
        """A key that is equal for requests that can share one call."""
        if request.key is None:
            request.key = group_key(self.site(request), request, self.digests, self.uneven)
        return request.key

    def site(self, request: NetworkRequest) -> Site | None:
        """The batch layout of a request's form of call; ``None`` for a form that is not joined."""
        return self.sites.get(form_of(request))

    def answer(self, requests: Sequence[NetworkRequest], lanes: list[int]) -> tuple[list[Any], list[int]]:
        """Answers requests with one network call: the outputs and the number of rows per image of each request.

        Args:
            requests: requests that can be joined.
            lanes: position of each of their images in the batch that is being evaluated.
        """
        first = requests[0]
        site = self.site(first)
        counts = [(request_rows(site, request) if site else None) or leading_rows(request) for request in requests]
        rows = [count for count, request in zip(counts, requests, strict=True) for _ in range(request.lanes)]
        # Padded with whole images, not rows: networks may split their batch by branches.
        more = self._filling(rows) if site is not None and self.joins else 0
        asked = list(requests)
        if more:
            least = requests[counts.index(min(counts))]
            args, kwargs = first_of((least.args, least.kwargs))
            asked += [NetworkRequest(least.site, least.module, args, kwargs, least.form)] * more
            rows = [*rows, *[min(counts)] * more]
        single = len(asked) == 1 and first.lanes == 1
        if site is None or (single and not self.compiled):
            # Some networks consume a list argument (UNets pop their adapter's residuals).
            args = tuple(list(value) if type(value) is list else value for value in first.args)
            kwargs = {name: list(value) if type(value) is list else value for name, value in first.kwargs.items()}
        else:
            args, kwargs = joined_request(site, asked, rows, bool(self.compiled))
        name = first.site[0]
        self.network_calls[name] = self.network_calls.get(name, 0) + 1
        with torch.no_grad():
            if self.call_network is None:
                answer = first.module(*args, **kwargs)
            else:
                answer = self.call_network(first, args, kwargs, rows, lanes)
        if site is None or single:
            answers = [answer]
        else:
            answers = split(site.output, answer, rows, [request.lanes for request in asked])[: len(requests)]
        if first.lanes == 1 and (kind := _blank_key(first)) not in self._blank and not holds_state(answers[0]):
            self._blank[kind] = with_tensors(answers[0], torch.zeros_like)
        return answers, counts

    def _filling(self, counts: Sequence[int]) -> int:
        """Number of images that pad a call; ``counts`` are the rows of each request."""
        missing = bucket_of(sum(counts), self.buckets) - sum(counts)
        return -(-missing // min(counts))

    def learn(self, one: Sequence[tuple[NetworkRequest, Any]], two: Sequence[tuple[NetworkRequest, Any]]) -> None:
        """Learns the batch axes from a step for one image and the same step for two images."""
        if [r.site for r, _ in one] != [r.site for r, _ in two]:
            return
        for (first, answer), (second, other) in zip(one, two, strict=True):
            self.sites[form_of(first)] = None
            if holds_state(answer):  # an output with a cache belongs to one image
                continue
            with suppress(ValueError):
                layouts = learn(first.args, second.args), learn(first.kwargs, second.kwargs), learn(answer, other)
                self.sites[form_of(first)] = Site(*layouts)

    def blank_answer(self, request: NetworkRequest) -> Any:
        """An output of zeros: advances a call to its next step without a network evaluation."""
        kind = _blank_key(request)
        fills_cache = holds_state(request.args) or holds_state(request.kwargs)  # of keys and values: by the call itself
        if fills_cache or kind not in self._blank:
            with torch.no_grad():
                answer = request.module(*request.args, **request.kwargs)
            if fills_cache or holds_state(answer):
                return answer
            self._blank[kind] = with_tensors(answer, torch.zeros_like)
        return self._blank[kind]


def _blank_key(request: NetworkRequest) -> Any:
    """A key that is equal for requests whose outputs have one shape."""
    values = (*request.args, *request.kwargs.values())
    first = next((v for v in values if isinstance(v, Tensor) and v.ndim > 1), None)
    if first is None:
        first = next((v[0] for v in values if isinstance(v, list) and v and isinstance(v[0], Tensor)), None)
    return (form_of(request), leading_rows(request), None if first is None else first.shape)


def holds_state(value: Any) -> bool:
    """Whether arguments hold an object that is neither a tensor nor a plain value, such as a cache."""
    inside = entries(value)
    if inside is not None:
        return any(holds_state(entry) for entry in inside)
    plain = Tensor | bool | int | float | str | bytes | torch.dtype | torch.device | torch.Generator | torch.Size
    return value is not None and not isinstance(value, plain)


def leading_rows(request: NetworkRequest) -> int:
    """Rows of a request of unknown layout: the length of its first tensor or list."""
    for value in (*request.args, *request.kwargs.values()):
        if isinstance(value, Tensor) and value.ndim > 1:
            return len(value)
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            return len(value)
    return 1


def warn_not_joined(pipe: Any, reason: str) -> None:
    """Warns that calls are not joined, which makes them slower."""
    warnings.warn(
        f"network calls of a {type(pipe).__name__} are not joined: {reason}\n  -> every image takes its own network "
        "calls: the images are the same, the speed is that of generating them one after the other",
        UserWarning,
        stacklevel=4,
    )
