"""The observation that needs no preview: nothing is decoded or scored before the image is finished."""

from __future__ import annotations

import numpy as np
import pytest

from addiffusion_env.envs.episodes import Episodes
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.envs.slot import info_of
from addiffusion_env.errors import UnknownNameError

BLIND = {"observation_keys": "denoiser", "reward": {"preset": "default", "preference_gain": 0.0}, "refine": "off"}


def test_no_preview_is_decoded_or_scored_before_the_end():
    episodes = Episodes(EnvSettings.of(steps=3, **BLIND), 2)
    for index in range(2):
        episodes.begin(index, index)
    first = episodes.observe()
    assert set(first) == {"features", "prompt", "timestep", "spent"}
    assert first["features"].shape == (2, 128)  # the emoji UNet's middle block
    np.testing.assert_array_equal(first["features"], 0)
    result = episodes.step([0, 0])
    assert np.abs(result.observation["features"]).max() > 0
    assert not info_of(result.infos, 0)["has_scores"] and info_of(result.infos, 0)["clip_score"] == 0
    result = episodes.step([1, 1])
    counts = episodes.engine.counters
    assert (counts.looks, counts.decodes) == (0, 2)
    assert result.terminated.all() and np.isfinite(result.reward).all()
    assert info_of(result.infos, 0)["reward_terms"]["terminal_bonus"] > 0


def test_a_reward_that_reads_previews_has_them_scored():
    episodes = Episodes(EnvSettings.of(**{**BLIND, "steps": 3, "reward": "default"}), 1)
    episodes.begin(0, 0)
    episodes.step([0])
    assert episodes.engine.counters.looks == 1


def test_features_survive_a_restart():
    settings = EnvSettings.of(steps=4, **BLIND)
    one, other = Episodes(settings, 1), Episodes(settings, 1)
    one.begin(0, 5)
    one.step([0])
    other.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(other.observe()["features"], one.observe()["features"])


def test_the_preset_shows_a_cost_that_varies():
    assert EnvSettings.of(observation_keys="denoiser", cost_per_nfe=[0, 0.03]).keys()[-1] == "cost_per_nfe"
    with pytest.raises(UnknownNameError, match="denoiser"):
        EnvSettings.of(observation_keys="denoizer")
