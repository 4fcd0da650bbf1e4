"""Result of a metric: its value, and everything that comparisons of values depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Setting = str | int | float


class SmallSampleWarning(UserWarning):
    """A metric was computed on too few images to be comparable with published values."""


@dataclass(frozen=True)
class MetricResult:
    """Value of one metric.

    Attributes:
        name: the metric; with another network than Inception, ``fid`` is named ``fid[network]``.
        value: the number. FID and KID: 0 or more for equal distributions, lower is closer. PSNR: decibels, higher is
            closer. LPIPS: 0 for equal images, lower is closer.
        n: number of images.
        backend: which package computed it, with its version; values of different backends are not comparable.
        settings: everything else that the value depends on: network, sha256 of its weights, size of the reference ...
        higher_is_better: the direction.
        values: (n,) one number per image, in order, for paired metrics; empty for metrics of whole sets.
        spread: standard deviation over KID's subsets; ``None`` for the others. Subsets overlap, so it is not a standard
            error.
        notes: warnings about the value.
    """

    name: str
    value: float
    n: int
    backend: str
    settings: Mapping[str, Setting] = field(default_factory=dict)
    higher_is_better: bool = False
    values: tuple[float, ...] = ()
    spread: float | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:.3g}"
        notes = "".join(f"\n  note: {note}" for note in self.notes)
        return f"{self.name} {self.value:.4g}{spread} (n={self.n}, {self.backend}){notes}"
