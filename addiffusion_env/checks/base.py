"""Contracts: functions of one subject, run in order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any

from torch import nn

from addiffusion_env.backbones import Identified
from addiffusion_env.backbones.identity import differences, listed
from addiffusion_env.errors import AdDiffusionError, ContractError

Contract = Callable[[Any], None]


def require(holds: bool, cause: str, remedy: str) -> None:
    """Raises unless ``holds``.

    Raises:
        ContractError: with the value seen and what was expected, and what to do.
    """
    if not holds:
        raise ContractError(cause, remedy)


def refuses(error: type[AdDiffusionError], call: Callable[[], Any], what: str) -> None:
    """Raises unless ``call`` raises ``error``.

    Args:
        error: what must be raised.
        call: makes the call that must be refused.
        what: the bad input, in words.
    """
    try:
        call()
    except error:
        return
    raise ContractError(f"{what} was accepted", f"raise {error.__name__}")


def identity_is_held(subject: Identified, use: Callable[[], Any]) -> None:
    """Raises unless a component's identity is plain JSON, does not change with use, and changes with its weights.

    Args:
        subject: the component; the weights of its first module are changed and restored.
        use: uses the component.
    """
    kind = type(subject).__name__
    before = subject.identity
    try:
        json.dumps(before)
    except (TypeError, ValueError) as error:
        raise ContractError(
            f"the identity of {kind} is not plain JSON: {error}", "use numbers, strings, lists and mappings"
        ) from error
    use()
    changed = differences(before, subject.identity)
    cause = f"the identity of {kind} changes with use: {listed(changed)}"
    require(not changed, cause, "list attributes that only cache in not_identity")
    weight = next((value for module in _modules(subject) for value in module.parameters() if value.numel()), None)
    if weight is None:
        return
    kept = weight.detach().clone()
    try:
        weight.data.fill_(7)
        found = subject.identity
    finally:
        weight.data.copy_(kept)
    cause = f"the identity of {kind} is the same with other weights"
    require(found != before, cause, "include the hash of the weights")


def _modules(subject: Any) -> Iterator[nn.Module]:
    for value in vars(subject).values():
        if isinstance(value, nn.Module):
            yield value
        elif is_dataclass(value):
            yield from _modules(value)


def promise(contract: Contract) -> str:
    """What a contract promises, in one line."""
    return (contract.__doc__ or contract.__name__).strip().splitlines()[0].rstrip(".")


def hold(contracts: Sequence[Contract], subject: Any) -> list[str]:
    """Runs contracts on a subject and returns the promises that hold, in words.

    Raises:
        ContractError: at the first that is broken.
    """
    return list(each(contracts, subject))


def each(contracts: Sequence[Contract], subject: Any) -> Iterator[str]:
    """As :func:`hold`, one by one."""
    for contract in contracts:
        contract(subject)
        yield promise(contract)
