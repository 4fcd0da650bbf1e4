"""docs/pipelines.md matches the command's measurements."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from addiffusion_env.__main__ import main
from addiffusion_lab.tiny_pipelines import REFUSED, ZOO
from addiffusion_lab.tiny_pipelines.page import AGREEMENT, CONVENTIONS, INEXACT, PREVIEW_COLUMNS

PAGE = Path(__file__).parents[2] / "docs" / "pipelines.md"
LIMITS = {"alone": 1e-5, "joined": 1e-4, "early exit": 1e-5}
TABLES = (AGREEMENT, CONVENTIONS, PREVIEW_COLUMNS)


def rows(text):
    """(columns, pipeline) -> cells, of every table of the page."""
    found, columns = {}, ()
    for line in text.splitlines():
        cells = tuple(cell.strip() for cell in line.strip("|").split(" | ")) if line.startswith("| ") else ()
        if not cells:
            columns = ()
        elif not columns:
            columns = cells
        elif not line.startswith("| ---"):
            found[columns, cells[0].strip("`")] = dict(zip(columns, cells, strict=True))
    return found


def test_the_page_has_every_pipeline_and_all_agree():
    found = rows(PAGE.read_text(encoding="utf-8"))
    for columns in TABLES:
        assert {name for header, name in found if header == columns} == set(ZOO)
    for (columns, name), cells in found.items():
        if columns == AGREEMENT:
            assert all(float(cells[column]) <= limit for column, limit in LIMITS.items()), name
            assert float(cells["prompt"]) > 1e-3, f"{name}: prompts have no effect, so agreement proves nothing"
    refused = {name: cells["error message"] for (columns, name), cells in found.items() if columns not in TABLES}
    assert set(refused) == set(REFUSED)
    assert all(" → " in said for said in refused.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["z_image", "lumina", "sd15_controlnet_guess"])
def test_its_rows_are_what_the_command_measures(name, tmp_path):
    main(["check", name, "--pipelines", "--out", str(tmp_path / "row.md")])
    committed, measured = (rows(path.read_text(encoding="utf-8")) for path in (PAGE, tmp_path / "row.md"))
    assert {columns for columns, _ in measured} == set(TABLES)
    for key, cells in measured.items():
        for column, cell in cells.items():
            if column not in INEXACT:
                assert cell == committed[key][column], (key, column)
            elif column in LIMITS:
                assert float(cell) <= LIMITS[column]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["check"], "check needs a name"),
        (["check", "ddim", "--out", "a.md"], "--out goes with --pipelines"),
        (["check", "--pipelines", "z_imag"], "unknown tiny pipeline 'z_imag'"),
    ],
)
def test_what_cannot_be_checked_is_reported(words, said, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sd15", "lumina"])  # Lumina's transformer leaves a parameter uninitialised
def test_a_builder_gives_the_same_weights_at_every_call(name):
    first, second = (ZOO[name]().components for _ in range(2))
    for part, module in first.items():
        if isinstance(module, torch.nn.Module):
            other = second[part].state_dict()
            assert all(torch.equal(value, other[key]) for key, value in module.state_dict().items())
