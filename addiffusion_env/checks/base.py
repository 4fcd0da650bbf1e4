"""Contracts: functions of one subject, run in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

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
        call: does what must be refused.
        what: the bad input, in words.
    """
    try:
        call()
    except error:
        return
    raise ContractError(f"{what} was accepted", f"raise {error.__name__}")


def promise(contract: Contract) -> str:
    """What a contract promises, in one line."""
    return (contract.__doc__ or contract.__name__).strip().splitlines()[0].rstrip(".")


def hold(contracts: Sequence[Contract], subject: Any) -> list[str]:
    """Runs contracts on a subject and returns what holds, in words.

    Raises:
        ContractError: at the first that is broken.
    """
    return list(each(contracts, subject))


def each(contracts: Sequence[Contract], subject: Any) -> Iterator[str]:
    """As :func:`hold`, one by one."""
    for contract in contracts:
        contract(subject)
        yield promise(contract)
