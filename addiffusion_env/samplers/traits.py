"""Properties of samplers: reports, figures and claims use these traits, never a sampler's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

PARTS = ("preference", "clip", "dino")
"""The scorers of previews and finished images, by their part in :class:`.ImageScorers`."""

ScoresUsed = tuple[tuple[str, str], ...]
"""Pairs of (part, description of its use); parts are those of :data:`PARTS`."""


@dataclass(frozen=True)
class Traits:
    """Properties of a sampler, independent of its images.

    A class of samplers declares what differs from these defaults, as class attributes or properties.

    Attributes:
        kind: kind of comparator; its registered name where it declares no other.
        constant: whether it spends the same on every prompt.
        learned: whether it was trained.
        bound: whether it is an upper bound for comparison that cannot be used in practice, such as an oracle.
        needs_preview: whether it needs a scored preview at each decision; previews cost time, but no NFE.
        schedule_steps: length of the fixed schedule that every image is drawn with; ``None`` without one.
        curve: name shared with the same sampler at other settings (a policy at other costs per NFE): such samplers
            are points of one curve. Empty where it belongs to none.
        control_of: name of the sampler that it is a control of; empty for none.
        controls: what the control removes from that sampler, such as ``no_refine``.
        scores_used: the scorers that it was optimised by, selects by, or sees: they cannot judge it.
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
        """The traits of a sampler; the defaults where it declares none, which assume that every scorer is used."""
        found: dict[str, Any] = {item.name: getattr(sampler, item.name, item.default) for item in fields(cls)}
        return cls(**found)

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Traits:
        """Reads traits from JSON."""
        used = tuple((part, how) for part, how in plain["scores_used"])
        return cls(**{**plain, "controls": tuple(plain["controls"]), "scores_used": used})


def selected_by(parts: Sequence[str], needs_preview: bool) -> ScoresUsed:
    """Scores used by a sampler without training: those that it selects by, and all of them if it needs previews."""
    selects = [(part, "it keeps the attempt with the best such score") for part in parts]
    seen = PARTS if needs_preview else ()
    return (*selects, *((part, "it observes it at its decisions") for part in seen if part not in parts))
