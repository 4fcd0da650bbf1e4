"""Optional parts of an evaluation: checked, run and reported in addition to the records. Plugins register them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from addiffusion_env.registry import Registry

if TYPE_CHECKING:
    from rich.console import Console

    from addiffusion_env.evaluation.manifest import Manifest
    from addiffusion_env.evaluation.records import Record
    from addiffusion_env.evaluation.sections import Section
    from addiffusion_env.prompts import Prompt
    from addiffusion_env.samplers.base import Sampler

EXTRAS = Registry("setting of an evaluation", more="addiffusion_lab")
"""Key of ``configs/eval.yaml`` -> a subclass of :class:`Extra`. Empty until a plugin registers some."""


@dataclass(frozen=True)
class Reported:
    """Contribution of an extra to the report.

    Attributes:
        sections: of ``report.html`` and ``report.md``, in order.
        results: stored in ``summary.json`` under the extra's key; ``None`` stores nothing.
        show: prints results on a console after the evaluation; ``None`` prints nothing.
    """

    sections: Sequence[Section] = ()
    results: Any = None
    show: Callable[[Console], None] | None = None


class Extra:
    """One optional part of an evaluation. An instance is created only when its key is set.

    Subclasses override what they need. :meth:`report` only reads the folder, so that a report can be regenerated.

    Attributes:
        needs_images: whether every image must be kept as PNG.
        first: whether its sections come before all others; otherwise they come before the last one.
        takes: type of the value under its key.
        folder: default name of the output folder when this extra is used; empty keeps the usual one.
    """

    needs_images: ClassVar[bool] = False
    first: ClassVar[bool] = False
    folder: ClassVar[str] = ""
    takes: ClassVar[type] = Mapping

    def __init__(self, config: Mapping[str, Any], samplers: Sequence[Sampler], backbone: str) -> None:
        """Checks the settings before any model is loaded or image generated.

        Args:
            config: the evaluation's whole configuration.
            samplers: of the evaluation.
            backbone: registry name.

        Raises:
            ConfigError: for invalid settings.
        """

    @staticmethod
    def runs(given: Any) -> Sequence[str]:
        """Further policies to evaluate at each of ``costs_per_nfe``: folders or names, from the value under the key."""
        return ()

    def run(self, folder: Path, prompts: Sequence[Prompt]) -> None:
        """Runs on a finished evaluation, whose folder holds the records and, if needed, the images."""

    @classmethod
    def report(cls, records: Sequence[Record], manifest: Manifest, folder: Path) -> Reported:
        """Sections and results from the folder's content; an extra that was not used reports nothing."""
        return Reported()
