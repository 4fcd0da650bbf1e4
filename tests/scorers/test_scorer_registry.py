"""The registry: names agree with the classes, and errors suggest the nearest one."""

from __future__ import annotations

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
