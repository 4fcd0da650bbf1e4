"""Retries after rate limits, server errors and time-outs: exponential back-off, or the service's delay."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from addiffusion_env.errors import AdDiffusionError, ConfigError, MissingPackageError

_log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class VlmServiceError(AdDiffusionError, ConnectionError):
    """A service that refuses, fails, or cannot be reached, after all retries."""


class AttemptError(Exception):
    """A failed attempt. Its message never contains the key.

    Args:
        message: what happened.
        retry: whether the same request may succeed later.
        wait: seconds that the service asks to wait, or ``None``.
        billed: whether the service may have charged for it, because it was reached.
    """

    def __init__(self, message: str, *, retry: bool, wait: float | None = None, billed: bool = False) -> None:
        super().__init__(message)
        self.message, self.retry, self.wait, self.billed = message, retry, wait, billed


@dataclass(frozen=True)
class RetryPolicy:
    """Retry policy.

    Attributes:
        attempts: number of attempts, including the first one.
        base: maximum seconds before the second attempt; doubled for each further one.
        longest: maximum seconds of such a pause.
        patience: maximum seconds that a service may ask to wait (``Retry-After``); beyond that the run ends and can
            be resumed later.
    """

    attempts: int = 6
    base: float = 1.0
    longest: float = 60.0
    patience: float = 300.0

    def __post_init__(self) -> None:
        """Refuses policies without an attempt."""
        if self.attempts < 1 or self.base < 0 or self.longest < 0 or self.patience < 0:
            raise ConfigError(f"invalid retry policy: {self}", "set attempts to 1 or more, and no negative seconds")


def with_retries(
    attempt: Callable[[], Answer],
    policy: RetryPolicy,
    who: str,
    on_retry: Callable[[], None] = lambda: None,
    sleep: Callable[[float], object] = time.sleep,
) -> Answer:
    """Calls ``attempt`` until it succeeds.

    Args:
        attempt: raises :class:`AttemptError` when it fails.
        policy: retry policy.
        who: the service, for messages.
        on_retry: called before every further attempt.
        sleep: called to wait.

    Raises:
        VlmServiceError: for an error that no retry can fix, after the last attempt, or when the service asks to wait
            longer than the policy's patience.
    """
    try:
        import tenacity
    except ImportError as error:
        cause = f"retries need the package tenacity, which cannot be imported: {error}"
        raise MissingPackageError(cause, "pip install 'addiffusion-env[vlm]'") from error
    backoff = tenacity.wait_random_exponential(multiplier=policy.base, max=policy.longest)

    def pause(state: Any) -> float:
        asked = state.outcome.exception().wait
        return backoff(state) if asked is None else max(asked, 0.0)

    def report(state: Any) -> None:
        trouble, seconds = state.outcome.exception(), state.next_action.sleep
        _log.warning("%s: %s; asking again in %.1f s (%d)", who, trouble, seconds, state.attempt_number)
        on_retry()

    def rest(seconds: float) -> None:
        sleep(seconds)

    def passes(error: BaseException) -> bool:
        return isinstance(error, AttemptError) and error.retry and (error.wait or 0.0) <= policy.patience

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(policy.attempts),
        retry=tenacity.retry_if_exception(passes),
        wait=pause,
        before_sleep=report,
        sleep=rest,
        reraise=True,
    )
    try:
        return retrying(attempt)
    except AttemptError as trouble:
        cause, remedy = f"{who} refuses: {trouble}", "check the key, the model's name and the account"
        if trouble.retry and passes(trouble):
            cause = f"{who} failed {policy.attempts} times, last: {trouble}"
            remedy = "run again later: replies so far are cached"
        elif trouble.retry:
            cause = f"{who} asks to wait {trouble.wait:.0f} s, more than {policy.patience:.0f}: {trouble}"
            remedy = "run again then (replies so far are cached), or pass retries=RetryPolicy(patience=...)"
        raise VlmServiceError(cause, remedy) from None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that ``Retry-After`` (or ``Retry-After-Ms``) asks for, as a number or as a date; ``None`` without.

    >>> retry_after({"retry-after": "7"}), retry_after({"retry-after-ms": "250"}), retry_after({})
    (7.0, 0.25, None)
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            seconds = float(value) * unit
            return seconds if math.isfinite(seconds) else None
        except ValueError:
            pass
    try:
        moment = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())
