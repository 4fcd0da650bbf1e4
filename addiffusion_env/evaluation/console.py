"""Console output of a finished evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from addiffusion_env.evaluation.report import Report

FILE_WIDTH = 120
"""Width of output to a file or a pipe."""


def print_report(report: Report) -> None:
    """Prints the table of samplers, the output of extras, and the path of the report."""
    from rich.console import Console
    from rich.table import Column, Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, FILE_WIDTH))
    table = Table(*(Column(head, no_wrap=True) for head in ("sampler", "mean NFE", "correct", "preference", "seconds")))
    for row in report.summary.samplers:
        means = [f"{value.estimate:.2f}" for value in (row.nfe, row.preference, row.seconds)]
        cells = (means[0], str(row.correct or "-"), *means[1:])
        table.add_row(row.sampler, *cells, style="bold" if row.sampler == report.summary.focus else "")
    console.print(table)
    for found in report.extras.values():
        if found.show is not None:
            found.show(console)
    print(f"report: {report.html.resolve()}", flush=True)
