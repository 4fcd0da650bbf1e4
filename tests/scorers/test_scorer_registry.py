"""The registry: names agree with the classes, and listing them loads no model library."""

from __future__ import annotations

import subprocess
import sys

import pytest

from addiffusion_env.checks.components import find
from addiffusion_env.checks.scorers import SCORER_CONTRACTS
from addiffusion_env.errors import UnknownNameError
from addiffusion_env.scorers import SCORERS, Embedder, Scorer


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_every_entry_loads_and_bears_its_name(name):
    loaded = SCORERS.load(name)
    assert issubclass(loaded, (Scorer, Embedder))
    assert loaded.name == name
    assert isinstance(loaded.needs(), str)


@pytest.mark.parametrize("name", [name for name in sorted(SCORERS) if not SCORERS.load(name).needs()])
def test_what_runs_here_keeps_its_promises(name):
    [scorer] = [found for found in find(name) if found.kind == "scorer"]
    assert len(list(scorer.run())) == len(SCORER_CONTRACTS)


def test_a_mistyped_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'image_reward'"):
        SCORERS.load("imagereward")


def test_listing_imports_no_model_library():
    code = (
        "import sys, addiffusion_env.scorers as s; assert len(s.SCORERS) >= 8; "
        "print([m for m in ('transformers', 'open_clip', 'diffusers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
