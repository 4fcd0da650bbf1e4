"""``interval:``: the other sampler, guided where the process is, at the cost that this has."""

import pytest

from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.errors import UnknownNameError
from addiffusion_env.samplers import make_sampler, named_traits


def test_guided_inside_the_interval_alone(emoji, scorers, prompts):
    base = ProcessConfig(steps=20, guidance_interval=(3.0, 7.0), decide_at=(2,), check_finished=True)
    spent = {}
    for spec in ("fixed:6", "interval:fixed:6"):
        sampler = make_sampler(spec)
        sampler.bind(emoji, scorers)
        process = sampler.process(base)
        assert process.decide_at is None and not process.check_finished and process.steps == 6
        engine = Engine(emoji, scorers, decider=sampler.decide)
        [episode] = engine.run([sampler.coroutine(emoji, process, prompts[0], 0)])
        assert episode.lane.calls == engine.counters.denoiser_rows
        spent[spec] = episode.lane.nfe
    # Of sigma 14.6, 5.9, 2.9, 1.6, 0.93, 0.49 the second alone is inside.
    assert spent == {"fixed:6": 6.0, "interval:fixed:6": 3.5}


def test_it_is_a_comparator_of_the_same_kind_as_what_it_wraps():
    kinds = {
        name: named_traits(f"interval:{name}").kind for name in ("stop:2", "best_of:2x3", "threshold_resample:0.36,3,2")
    }
    assert kinds == {"stop:2": "fixed", "best_of:2x3": "best_of", "threshold_resample:0.36,3,2": "threshold_resample"}


def test_what_it_wraps_is_checked():
    with pytest.raises(UnknownNameError, match="fixed"):
        make_sampler("interval:fixd:6")
