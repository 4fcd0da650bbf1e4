"""Imitating a plain rule before PPO."""

import numpy as np
import pytest

from addiffusion_env.agents import training
from addiffusion_env.agents.factory import make_vec_env
from addiffusion_env.agents.warm_start import WarmStart, _demonstrations, collect, imitate
from addiffusion_env.errors import ConfigError

ALL = np.array([True, True, True])
NO_REFINE = np.array([True, True, False])


def info(step, preference, price=0.0, prompt="a photo of a dog"):
    return {"step": step, "has_look": True, "preference": preference, "price": price, "prompt": prompt}


def test_the_rule():
    rule = WarmStart(check_from=3, threshold=0.5, threshold_slope=10, land_at=4, fine_words=("red",))
    assert rule.action(info(3, 0.4), ALL) == 2  # low: again
    assert rule.action(info(3, 0.4, price=0.05), ALL) == 0  # not low at that price
    assert rule.action(info(2, -9.0), ALL) == 0  # too early to tell
    assert rule.action(info(3, -9.0), NO_REFINE) == 0
    assert rule.action(info(4, 0.9), ALL) == 1  # nothing fine is asked for
    assert rule.action(info(4, 0.9, prompt="a red dog"), ALL) == 0
    assert rule.action({**info(0, 0.0), "has_look": False}, NO_REFINE) == 0


def test_returns_run_backwards_within_episodes():
    nothing = {"quality": np.zeros((1, 8))}
    rows = [
        (nothing, np.array([0]), ALL[None], np.array([r]), np.array([d]))
        for r, d in [(1, False), (2, True), (4, False)]
    ]
    found = _demonstrations(rows)
    np.testing.assert_array_equal(found.returns, [3, 2, np.nan])


def test_the_policy_takes_after_the_rule():
    env = make_vec_env("lanes", 4, 0, {"steps": 3, "refine": "restart"})
    rule = WarmStart(decisions=48, epochs=60, check_from=1, threshold=-0.8, land_at=2, explore=0.2)
    shown = collect(env, rule, 0)
    assert shown.actions.shape == (48,) and set(shown.actions) == {0, 1, 2}
    model = training.make_model("maskable_ppo", env, {"n_steps": 4, "batch_size": 8}, 0, "cpu")
    assert imitate(model.policy, shown, rule, 0) > 0.9


def test_unknown_settings():
    with pytest.raises(ConfigError, match="no setting 'treshold'\n  -> did you mean 'threshold'"):
        WarmStart.of({"treshold": 1})
