"""Input arrays of statistics, and imports of the statistics packages."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from addiffusion_env.errors import ConfigError, MissingPackageError


def checked(values: np.ndarray, least: int = 1) -> np.ndarray:
    """(P,) float64 values.

    Raises:
        ConfigError: for another shape, fewer than ``least`` values, NaN or infinity.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < least:
        raise ConfigError(f"need {least} or more prompts, got an array of {values.shape}", "evaluate more prompts")
    if not np.isfinite(values).all():
        raise ConfigError(f"{(~np.isfinite(values)).sum()} of {len(values)} values are not finite", "drop them first")
    return values


def pair(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P,) and (P,) float64 values, paired by position.

    Raises:
        ConfigError: when they differ in length; otherwise as :func:`checked`.
    """
    first, second = checked(first), checked(second)
    if len(first) != len(second):
        raise ConfigError(f"paired values must be of one length, got {len(first)} and {len(second)}", "pair by prompt")
    return first, second


def differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(P,) ``first - second``, paired by position."""
    first, second = pair(first, second)
    return first - second


def binary(*arrays: np.ndarray) -> bool:
    """Whether every value is 0 or 1."""
    return all(bool(np.isin(values, (0.0, 1.0)).all()) for values in arrays)


def constant(values: np.ndarray) -> bool:
    """Whether values are equal up to rounding."""
    return bool(np.ptp(values) <= 1e-12 * max(1.0, abs(float(values[0]))))


def positive_margin(margin: float) -> float:
    """The margin as a float.

    Raises:
        ConfigError: unless it is above 0.
    """
    if not margin > 0:
        raise ConfigError(f"a margin must be above 0, got {margin}", "fix it in config before the run, for example .01")
    return float(margin)


def scipy_stats() -> Any:
    """``scipy.stats``, imported on use.

    Raises:
        MissingPackageError: without scipy.
    """
    return _load("scipy", "stats")


def scipy_optimize() -> Any:
    """``scipy.optimize``, imported on use.

    Raises:
        MissingPackageError: without scipy.
    """
    return _load("scipy", "optimize")


def statsmodels(name: str) -> Any:
    """``statsmodels.<name>``, imported on use.

    Raises:
        MissingPackageError: without statsmodels.
    """
    return _load("statsmodels", name)


def _load(package: str, module: str) -> Any:
    try:
        return import_module(f"{package}.{module}")
    except ImportError as error:
        raise MissingPackageError(
            f"reports need {package}, which is not installed", "pip install 'addiffusion-env[eval]'"
        ) from error
