"""What tells samplers apart: reports, figures and claims go by these traits, never by a sampler's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

PARTS = ("preference", "clip", "dino")
"""The scorers of previews and finished images, by their part in :class:`.ImageScorers`."""

ScoresUsed = tuple[tuple[str, str], ...]
"""(part, how it is used, in words) pairs; parts are those of :data:`PARTS`."""


@dataclass(frozen=True)
class Traits:
    """What is known of a sampler beside its images.

    A class of samplers declares what differs from these defaults, as class attributes or properties.

    Attributes:
        kind: of comparator that it counts as; its registered name where it declares no other.
        constant: whether it spends the same on every prompt.
        learned: whether it was trained.
        bound: whether it is a bound to compare with and cannot be used, as an oracle.
        needs_preview: whether it needs a scored preview at each decision; previews cost time, and no NFE.
        schedule_steps: length of the fixed schedule that every image is drawn with; ``None`` without one.
        curve: what it shares with the same sampler at other settings (a policy at other costs per NFE): such samplers are
            points of one curve. Empty where it belongs to none.
        control_of: the sampler that it is a control of, by name; empty for none.
        controls: what is taken from that sampler, as ``no_refine``.
        scores_used: the scorers that it was optimised or selects by, or sees: they cannot judge it.
    """

    kind: str = ""
    constant: bool = False
    learned: bool = False
    bound: bool = False
    needs_preview: bool = False
    schedule_steps: int | None = None
    curve: str = ""
    control_of: str = ""
    controls: tuple[str, ...] = ()
    scores_used: ScoresUsed = tuple((part, "it does not declare which scores it reads") for part in PARTS)

    @classmethod
    def of(cls, sampler: Any) -> Traits:
        """The traits of a sampler; the defaults where it declares none, which take every scorer for used."""
        found: dict[str, Any] = {item.name: getattr(sampler, item.name, item.default) for item in fields(cls)}
        return cls(**found)

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Traits:
        """The traits that were written to JSON."""
        used = tuple((part, how) for part, how in plain["scores_used"])
        return cls(**{**plain, "controls": tuple(plain["controls"]), "scores_used": used})


def selected_by(parts: Sequence[str], needs_preview: bool) -> ScoresUsed:
    """The scores that a sampler without training uses: those that it selects by, and with previews all of them."""
    selects = [(part, "it keeps the attempt that scores best by it") for part in parts]
    seen = PARTS if needs_preview else ()
    return (*selects, *((part, "it sees it while it decides") for part in seen if part not in parts))
