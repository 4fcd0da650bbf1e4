"""What becomes of a lane that fails: it is dropped alone and counted, until there are too many."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from addiffusion_env.errors import AdDiffusionError, ConfigError, ImageRangeError, NumericsError, ScorerError

LANE_ERRORS = (NumericsError, ImageRangeError, ScorerError)
"""Errors that are one lane's own: NaN from a denoiser, decoder or scorer, and a scorer that raises. Any other error
(a wrong configuration, missing weights, a prompt that does not fit) ends the run, whatever the limit."""


@dataclass(frozen=True)
class Fault:
    """What a dropped lane has instead of a result.

    Attributes:
        error: why it was dropped.
    """

    error: AdDiffusionError


@dataclass
class FaultCount:
    """How many lanes were dropped, and how many may be.

    Attributes:
        limit: lanes that may be dropped; 0 raises the first error.
        count: lanes that were.
    """

    limit: int = 0
    count: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or self.limit < 0:
            raise ConfigError(f"max_faults must be a number from 0, got {self.limit!r}", "0 stops at the first")

    def drop(self, error: AdDiffusionError) -> Fault:
        """Counts a lane that failed with one of :data:`LANE_ERRORS` and warns.

        Raises:
            AdDiffusionError: ``error``, once more than ``limit`` lanes have failed.
        """
        self.count += 1
        if self.limit == 0:
            raise error
        if self.count > self.limit:
            before = f"{error.cause} ({self.limit} pictures were dropped before this one, max_faults={self.limit})"
            raise type(error)(before, error.remedy) from error
        warnings.warn(f"picture dropped ({self.count} of at most {self.limit}): {error.cause}", stacklevel=2)
        return Fault(error)
