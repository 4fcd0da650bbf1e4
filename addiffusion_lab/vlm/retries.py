"""Asking again after rate limits, server errors and time-outs: exponential back-off, or as long as the service says."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TypeVar

from addiffusion_env.errors import ConfigError
from addiffusion_lab.vlm.client import AttemptError, VlmServiceError

_log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how patiently to ask again.

    Attributes:
        attempts: in all, the first one included.
        base: seconds before the second attempt; doubled for each further one, and scattered by half.
        longest: most seconds of such a pause.
        patience: most seconds that a service may ask to wait (``Retry-After``); for more the run ends, and can be
            resumed then.
    """

    attempts: int = 6
    base: float = 1.0
    longest: float = 60.0
    patience: float = 300.0

    def __post_init__(self) -> None:
        """Refuses policies that never ask."""
        if self.attempts < 1 or self.base < 0 or self.longest < 0 or self.patience < 0:
            raise ConfigError(f"no way to retry: {self}", "attempts of 1 or more, and no negative seconds")

    def pause(self, failures: int, wait: float | None) -> float:
        """Seconds before the next attempt, after ``failures`` of them; at least what the service asked for."""
        backoff = min(self.longest, self.base * 2 ** (failures - 1)) * random.uniform(0.5, 1.0)
        return backoff if wait is None else max(wait, 0.0)


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
        policy: how often.
        who: the service, for messages.
        on_retry: told of every further attempt.
        sleep: waits.

    Raises:
        VlmServiceError: for a trouble that no retry mends, after the last attempt, or when the service asks to wait
            longer than the policy's patience.
    """
    for failures in range(1, policy.attempts + 1):
        try:
            return attempt()
        except AttemptError as trouble:
            if not trouble.retry:
                raise VlmServiceError(
                    f"{who} refuses: {trouble.message}", "check the key, the model's name and the account"
                ) from None
            if failures == policy.attempts:
                raise VlmServiceError(
                    f"{who} failed {failures} times, last: {trouble.message}",
                    "run again later: replies so far are cached",
                ) from None
            pause = policy.pause(failures, trouble.wait)
            if trouble.wait is not None and trouble.wait > policy.patience:
                raise VlmServiceError(
                    f"{who} asks to wait {trouble.wait:.0f} s, more than {policy.patience:.0f}: {trouble.message}",
                    "run again then (replies so far are cached), or pass retries=RetryPolicy(patience=...)",
                ) from None
            _log.warning("%s: %s; asking again in %.1f s (%d)", who, trouble.message, pause, failures)
        on_retry()
        sleep(pause)
    raise AssertionError("a policy has one attempt or more")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that ``Retry-After`` (or ``Retry-After-Ms``) asks for, as a number or as a date; ``None`` without.

    >>> retry_after({"retry-after": "7"}), retry_after({"retry-after-ms": "250"}), retry_after({})
    (7.0, 0.25, None)
    """
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return _finite(float(milliseconds) / 1000)
        if (value := headers.get("retry-after")) is None:
            return None
        return float(value) if value.strip().replace(".", "", 1).isdigit() else _until(value)
    except (TypeError, ValueError):
        return None


def duration(text: str) -> float | None:
    """Seconds of protobuf's notation.

    >>> duration("17.5s"), duration("soon")
    (17.5, None)
    """
    try:
        return _finite(float(text.strip().removesuffix("s")))
    except ValueError:
        return None


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None


def _until(date: str) -> float:
    moment = parsedate_to_datetime(date)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())
