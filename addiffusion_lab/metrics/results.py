"""What a metric says: its number, and everything without which the number cannot be compared with another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Setting = str | int | float


class SmallSampleWarning(UserWarning):
    """A metric was computed on too few images for its number to be compared with published ones."""


@dataclass(frozen=True)
class MetricResult:
    """One number of one metric.

    Attributes:
        name: the metric; with another network than Inception, ``fid`` is named ``fid[network]``.
        value: the number. FID and KID: 0 or more for equal distributions, lower is closer. PSNR: decibels, higher is
            closer. LPIPS: 0 for equal images, lower is closer.
        n: images judged.
        backend: which package computed it, with its version; backends differ, so it belongs in the column head.
        settings: what else the number depends on: network, sha256 of its weights, size of the reference ...
        higher_is_better: the direction.
        values: (n,) one number per image, in order, for paired metrics; empty for those of whole sets.
        spread: standard deviation over KID's subsets; ``None`` for the others. Subsets overlap: no standard error.
        notes: reasons for caution, in words.
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
