"""Every error that this package raises on purpose: one line of cause, one line of remedy.

All derive from :class:`AdDiffusionError`, so ``except AdDiffusionError`` catches what a user can mend, and from the
built-in class that a reader expects (``LookupError``, ``ValueError``, ``OSError``), so generic handlers work too.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable


class AdDiffusionError(Exception):
    """Base of all deliberate errors.

    Args:
        cause: what is wrong, with the value seen and what was expected.
        remedy: what to do about it.
    """

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(f"{cause}\n  -> {remedy}" if remedy else cause)
        self.cause = cause
        self.remedy = remedy

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        # Errors cross process borders (SubprocVecEnv, Ray): pickle by the two lines, not by the joined text.
        return type(self), (self.cause, self.remedy)


class UnknownNameError(AdDiffusionError, LookupError):
    """A name that no registry, config or enumeration knows."""


class ConfigError(AdDiffusionError, ValueError):
    """A configuration value of the wrong type, range or combination."""


class UnexpectedKeywordError(ConfigError, TypeError):
    """A keyword argument that a constructor does not take.

    A ``TypeError`` too, as Python's own: libraries that try a keyword of theirs on every environment and go on
    without it (TorchRL's ``frameskip``) look for that type and for the words "unexpected keyword argument".
    """


class CapabilityError(AdDiffusionError, ValueError):
    """A backbone was asked for something it cannot do."""


class WeightsError(AdDiffusionError, OSError):
    """Weights that are missing, corrupted or of another kind than asked for."""


class UntrustedFileError(AdDiffusionError, PermissionError):
    """A file that can run code when it is loaded, and that nobody has said to trust."""


class PromptError(AdDiffusionError, ValueError):
    """A prompt that the text encoder would cut or that a source cannot read."""


class ImageRangeError(AdDiffusionError, ValueError):
    """An image of the wrong shape, type or range."""


class NumericsError(AdDiffusionError, ArithmeticError):
    """NaN or infinity from a denoiser, decoder or scorer."""


class ScorerError(AdDiffusionError, RuntimeError):
    """A scorer or judge that raised an error of its own."""


class DeviceMemoryError(AdDiffusionError, MemoryError):
    """The device ran out of memory in a denoiser, decoder or scorer."""


class IllegalActionError(AdDiffusionError, ValueError):
    """An action outside the space, or masked at this state."""


class EpisodeOverError(AdDiffusionError, RuntimeError):
    """``step`` was called on an episode that has ended, or before ``reset``."""


class ContractError(AdDiffusionError, AssertionError):
    """A component does not do what its kind promises; see :mod:`addiffusion_env.checks`."""


class RunFolderError(AdDiffusionError, OSError):
    """A run folder that cannot be written or read."""


class ResumeError(AdDiffusionError, ValueError):
    """A checkpoint that does not belong to this configuration."""


class WorkerError(AdDiffusionError, RuntimeError):
    """A remote worker that is lost again and again."""


class MissingPackageError(AdDiffusionError, ImportError):
    """An optional package that a feature needs is not installed."""


def closest(name: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that is most like ``name``; of equals the one that begins like it for longest.

    >>> closest("sd16", ["sd15", "sd21", "sdxl"]), closest("fid", ["clip"])
    ('sd15', None)
    """
    close = difflib.get_close_matches(name, known := list(known), n=max(1, len(known)), cutoff=0.5)

    def likeness(other: str) -> tuple[float, int]:
        begun = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(name, other, strict=False))
        return difflib.SequenceMatcher(None, other, name).ratio(), len(list(begun))

    return max(close, default=None, key=likeness)


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ``"did you mean 'x'? known: ..."`` for the closest of ``known`` to ``name``."""
    names = sorted({str(item) for item in known})
    close = closest(str(name), names)
    hint = f"did you mean {close!r}? " if close else ""
    return f"{hint}known: {', '.join(names)}"


def check_settings(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuses a mistyped setting.

    Args:
        what: whose it is, with its verb: ``"tabular has"``.
        given: names that were given.
        known: names that there are.

    Raises:
        ConfigError: naming the setting and the nearest known one.
    """
    names = list(known)
    for key in given:
        if key not in names:
            raise ConfigError(f"{what} no setting {key!r}", nearest(key, names))


def check_keywords(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuses a mistyped keyword argument, as :func:`check_settings` refuses a setting.

    Raises:
        UnexpectedKeywordError: naming the keyword and the nearest known one.
    """
    names = list(known)
    for key in given:
        if key not in names:
            cause = f"got an unexpected keyword argument {key!r}: {what} no setting {key!r}"
            raise UnexpectedKeywordError(cause, nearest(key, names))


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Builds the error for a mistyped ``name`` of a ``kind``, naming the nearest known one."""
    return UnknownNameError(f"unknown {kind} {name!r}", nearest(name, known))
