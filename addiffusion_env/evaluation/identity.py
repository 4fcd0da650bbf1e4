"""What made and judged an evaluation's pictures, as plain values that go into each record's variant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.identity import described, differences, packages
from addiffusion_env.evaluation.judges import Judges
from addiffusion_env.scorers.look import LookScorers

SHOWN = 6
"""Differences of two identities that are listed."""


def identity_of(backbone: Backbone, scorers: LookScorers, judges: Judges) -> dict[str, Any]:
    """Everything that shapes a picture or a score, apart from method and process.

    Returns:
        ``backbone``, ``scorers`` and ``judges`` as they describe themselves (:class:`.Identified`), and ``packages``,
        the versions of those that their classes come from.
    """
    judging = {**judges.scorers, "correct": judges.verdict}
    found = described({"backbone": backbone, "scorers": scorers, "judges": judging})
    return {**found, "packages": packages(found)}


def difference_words(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The first few differences of two identities, on one line."""
    lines = differences(before, after)
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more
