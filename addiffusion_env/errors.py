"""The exceptions of this package: each message is one line of cause and one line of remedy.

All derive from :class:`AdDiffusionError`, so ``except AdDiffusionError`` catches everything that a user can correct,
and from the matching built-in class (``LookupError``, ``ValueError``, ``OSError``), so generic handlers work too.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable


class AdDiffusionError(Exception):
    """Base of all deliberate errors.

    Args:
        cause: what is wrong, with the value seen and the value expected.
        remedy: how to correct it.
    """

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(f"{cause}\n  -> {remedy}" if remedy else cause)
        self.cause = cause
        self.remedy = remedy

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        # Errors are pickled between processes (SubprocVecEnv, Ray): by the two lines, not by the joined text.
        return type(self), (self.cause, self.remedy)


class UnknownNameError(AdDiffusionError, LookupError):
    """Raised for a name that is not in a registry, configuration or enumeration."""


class ConfigError(AdDiffusionError, ValueError):
    """Raised for a configuration value of the wrong type or range, or an invalid combination."""


class UnexpectedKeywordError(ConfigError, TypeError):
    """Raised for a keyword argument that a constructor does not accept.

    It is also a ``TypeError``, as in Python itself: libraries that try a keyword on every environment and retry
    without it (TorchRL's ``frameskip``) check for that type and for the words "unexpected keyword argument".
    """


class CapabilityError(AdDiffusionError, ValueError):
    """Raised when a backbone does not support what is requested."""


class WeightsError(AdDiffusionError, OSError):
    """Raised for weights that are missing, corrupted or of an unexpected kind."""


class UntrustedFileError(AdDiffusionError, PermissionError):
    """Raised for a file that can run code when it is loaded, unless the user has marked it as trusted."""


class PromptError(AdDiffusionError, ValueError):
    """Raised for a prompt that the text encoder would truncate or that a source cannot read."""


class ImageRangeError(AdDiffusionError, ValueError):
    """Raised for an image of the wrong shape, type or range."""


class NumericsError(AdDiffusionError, ArithmeticError):
    """Raised for NaN or infinity from a denoiser, decoder, scorer or reward."""


class ScorerError(AdDiffusionError, RuntimeError):
    """Raised when a scorer or judge fails."""


class DeviceMemoryError(AdDiffusionError, MemoryError):
    """Raised when the device runs out of memory in a denoiser, decoder or scorer."""


class IllegalActionError(AdDiffusionError, ValueError):
    """Raised for an action outside the action space, or masked in the current state."""


class EpisodeOverError(AdDiffusionError, RuntimeError):
    """Raised when ``step`` is called on an episode that has ended, or before ``reset``."""


class ContractError(AdDiffusionError, AssertionError):
    """Raised when a component violates the contracts of its kind; see :mod:`addiffusion_env.checks`."""


class RunFolderError(AdDiffusionError, OSError):
    """Raised when a run folder cannot be written or read."""


class ResumeError(AdDiffusionError, ValueError):
    """Raised for a checkpoint that does not match the configuration, or is damaged."""


class WorkerError(AdDiffusionError, RuntimeError):
    """Raised when remote workers cannot be started, or are lost repeatedly."""


class MissingPackageError(AdDiffusionError, ImportError):
    """Raised when an optional package that a feature needs is not installed."""


def closest(name: str, known: Iterable[str]) -> str | None:
    """The element of ``known`` that is most similar to ``name``; on a tie the one with the longest common prefix.

    >>> closest("sd16", ["sd15", "sd21", "sdxl"]), closest("fid", ["clip"])
    ('sd15', None)
    """
    close = difflib.get_close_matches(name, known := list(known), n=max(1, len(known)), cutoff=0.5)

    def similarity(other: str) -> tuple[float, int]:
        prefix = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(name, other, strict=False))
        return difflib.SequenceMatcher(None, other, name).ratio(), len(list(prefix))

    return max(close, default=None, key=similarity)


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ``"did you mean 'x'? known: ..."`` for the closest of ``known`` to ``name``."""
    names = sorted({str(item) for item in known})
    close = closest(str(name), names)
    hint = f"did you mean {close!r}? " if close else ""
    return f"{hint}known: {', '.join(names)}"


def check_settings(what: str, given: Iterable[str], known: Iterable[str], keywords: bool = False) -> None:
    """Checks the names of settings.

    Args:
        what: the owner of the settings with a verb, for the error: ``"tabular has"``.
        given: the names given.
        known: the known names.
        keywords: whether they were given as keyword arguments.

    Raises:
        ConfigError: for an unknown name; suggests the nearest known one. An UnexpectedKeywordError for ``keywords``.
    """
    names = list(known)
    for key in given:
        if key not in names:
            cause, remedy = f"{what} no setting {key!r}", nearest(key, names)
            if keywords:
                raise UnexpectedKeywordError(f"got an unexpected keyword argument {key!r}: {cause}", remedy)
            raise ConfigError(cause, remedy)


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Builds the error for an unknown ``name`` of a ``kind``, which suggests the nearest known one."""
    return UnknownNameError(f"unknown {kind} {name!r}", nearest(name, known))
