"""The oracle tries every stop, keeps the best by one scorer, and reports its full cost."""

from __future__ import annotations

import pytest
import torch

from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.evaluation.runner import EvaluationContext, evaluate
from addiffusion_env.samplers import make_sampler

STEPS = 4


def make(spec, emoji, scorers, prompts):
    sampler = make_sampler(spec)
    sampler.bind(emoji, scorers)
    process = sampler.process(ProcessConfig(steps=STEPS, early_exit_steps=2))
    engine = Engine(emoji, scorers, decider=sampler.decide)
    return engine.run([sampler.coroutine(emoji, process, prompt, 0) for prompt in prompts])


STOPS = [*(f"stop:{step}" for step in range(STEPS)), f"fixed:{STEPS}"]


@pytest.fixture(scope="module")
def tried(emoji, scorers, prompts):
    """Every constant stop -> its episodes of three prompts."""
    return {spec: make(spec, emoji, scorers, prompts[:3]) for spec in STOPS}


@pytest.mark.parametrize("score", ["preference", "clip_score"])
def test_it_is_the_best_of_all_constant_stops(tried, emoji, scorers, prompts, score):
    for row, oracle in enumerate(make(f"oracle_stop:{score}", emoji, scorers, prompts[:3])):
        of = {spec: float(getattr(found[row].image.scores, score)[0]) for spec, found in tried.items()}
        best = max(of, key=of.get)
        assert float(getattr(oracle.image.scores, score)[0]) == pytest.approx(of[best], abs=2e-3)
        if sorted(of.values())[-1] - sorted(of.values())[-2] > 5e-3:  # no tie
            torch.testing.assert_close(oracle.image.tensor, tried[best][row].image.tensor, atol=1e-2, rtol=0)
            assert oracle.costs["chosen_nfe"] == tried[best][row].lane.nfe
            assert oracle.costs["chosen_calls"] == tried[best][row].lane.calls
            assert oracle.costs["chosen_step"] == STOPS.index(best)


def test_everything_that_it_did_is_charged(emoji, scorers, prompts):
    [oracle] = make("oracle_stop:preference", emoji, scorers, prompts[:1])
    # The schedule's four, and early exits of two from states 0, 1 and 2, of one (all that is left) from state 3.
    assert (oracle.lane.nfe, oracle.lane.calls) == (4 + 3 * 2 + 1, 2 * (4 + 3 * 2 + 1))
    assert oracle.costs["chosen_nfe"] <= 4


def test_it_tries_every_state_whatever_the_base_process_decides_at():
    base = ProcessConfig(steps=STEPS, decide_at=(2,), check_finished=True)
    process = make_sampler("oracle_stop:preference").process(base)
    assert all(process.decides(step) for step in range(STEPS))
    assert not process.check_finished and not process.refine.enabled


def test_its_record_holds_both_costs(emoji, scorers, prompts, tmp_path):
    context = EvaluationContext(emoji, scorers, ProcessConfig(steps=2, early_exit_steps=1))
    [record] = evaluate([make_sampler("oracle_stop:preference")], prompts[:1], [0], context, tmp_path)
    assert record.nfe == 2 + 1 + 1
    assert record.network_calls == 8
    assert record.extra["chosen_nfe"] in (1.0, 2.0)
    again = evaluate([make_sampler("oracle_stop:preference")], prompts[:1], [0], context, tmp_path)
    assert again == [record]  # read back from disk


def test_it_says_that_it_is_an_oracle():
    from addiffusion_env.samplers.oracle_stop import OracleStop

    assert "An oracle" in OracleStop.__doc__
