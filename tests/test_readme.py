"""Every Python block of the README runs, and every file it links to exists."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block_runs(block):
    assert len(block.strip().splitlines()) <= 12
    exec(compile(block, str(README), "exec"), {"__name__": "readme"})


def test_linked_files_exist():
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)", TEXT):
        assert (README.parent / target).exists(), target


def test_the_two_commands_are_in_the_makefile():
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for verb in ("train", "test", "eval", "bench", "check"):
        assert f"\n{verb}:" in makefile and f"make {verb}" in TEXT
