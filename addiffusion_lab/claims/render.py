"""Verdicts as a printed table and as a section of the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from addiffusion_env.evaluation.sections import Figure, Section, Table, p_text
from addiffusion_lab.claims.base import Comparison, Verdict

if TYPE_CHECKING:
    from rich.console import Console

HEAD = ("claim", "verdict", "effect", "p (Holm)", "prompts", "against", "judge", "why")
_COLOURS = {"supported": "green", "not supported": "red", "inconclusive": "yellow"}


def print_verdicts(verdicts: Sequence[Verdict], console: Console | None = None) -> None:
    """Prints the deciding verdicts as a table, their reasons below it, then margins."""
    from rich.console import Console
    from rich.table import Column
    from rich.table import Table as Printed

    console = console or Console()
    shown = [verdict for verdict in verdicts if verdict.decides]
    wrapped = ("effect", "against", "judge")
    table = Printed(*(Column(head, no_wrap=head not in wrapped) for head in HEAD[:-1]))
    for verdict in shown:
        cells = _cells(verdict)
        table.add_row(cells[0], f"[{_COLOURS[verdict.verdict]}]{cells[1]}[/]", *cells[2:-1])
    console.print(table)
    for verdict in shown:
        console.print(f"{verdict.hypothesis}: {_reason(verdict)}.", markup=False, highlight=False, soft_wrap=True)
    for words in _margins(verdicts):
        console.print(words, markup=False, highlight=False, soft_wrap=True)


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """One row per verdict, first deciding ones, then the others."""
    return Table(HEAD, tuple(_cells(verdict) for verdict in verdicts))


def hypotheses_section(verdicts: Sequence[Verdict]) -> Section:
    """The report's section: verdicts, margins and all comparisons."""
    deciding = [verdict for verdict in verdicts if verdict.decides]
    beside = [verdict for verdict in verdicts if not verdict.decides]
    parts: list[str | Table | Figure] = [
        "Supported: shown at the stated level. Not supported: a relevant effect is ruled out, at a level that holds "
        "for all comparisons of the claim together. Inconclusive: neither, which is no evidence either way. The prompt "
        "is the unit, paired by prompt and seed. H1 is a one-sided test at alpha with intervals of level 1 - 2 alpha: "
        "every part of it must hold, so its p is the largest, without adjustment. The others are two-sided with "
        "intervals of level 1 - alpha, p adjusted by Holm within each claim, and every comparison must hold; the p of "
        "a claim is 1 where an effect is on the other side. Each interval is of one comparison. The first judge that "
        "no sampler was optimised or selected by decides. Seconds are those of one run on one machine: their "
        "intervals are over prompts and do not hold how much another run would differ.",
        verdict_table(deciding),
        *(f"{verdict.hypothesis}: {verdict.claim}." for verdict in deciding),
        *_margins(verdicts),
    ]
    if beside:
        parts += ["Other judges, which do not decide:", verdict_table(beside)]
    rows = tuple(_comparison_cells(verdict, row) for verdict in deciding for row in verdict.comparisons)
    if rows:
        head = ("claim", "compared with", "effect", "p", "p (Holm)", "comparator run there")
        parts += ["All comparisons:", Table(head, rows)]
    return Section("Hypotheses", tuple(parts))


def _cells(verdict: Verdict) -> tuple[str, ...]:
    return (
        verdict.hypothesis,
        verdict.verdict,
        "-" if verdict.effect is None else verdict.effect.signed,
        p_text(verdict.p),
        str(verdict.n),
        verdict.comparator,
        verdict.judge,
        _reason(verdict),
    )


def _reason(verdict: Verdict) -> str:
    if verdict.prompts_needed is None:
        return verdict.reason
    return f"{verdict.reason}; about {verdict.prompts_needed} prompts would show it with power .8 {verdict.provided}"


def _comparison_cells(verdict: Verdict, row: Comparison) -> tuple[str, ...]:
    signed = row.effect.signed
    return (verdict.hypothesis, row.comparator, signed, p_text(row.p), p_text(row.holm), "yes" if row.reached else "no")


def _margins(verdicts: Sequence[Verdict]) -> list[str]:
    known = dict.fromkeys(str(verdict.margin) for verdict in verdicts if verdict.margin is not None)
    return [f"Margin: {words}." for words in known]
