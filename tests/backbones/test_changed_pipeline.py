"""A pipeline that is changed between the episodes of an environment around it."""

import gymnasium as gym
import pytest
import torch
from diffusers import UNet2DConditionModel
from zoo import ZOO

import addiffusion_env  # noqa: F401
from addiffusion_env.errors import CapabilityError

SETTINGS = {"steps": 2, "refine": "off", "pipeline_kwargs": {"height": 16, "width": 16}}


@pytest.fixture
def pipe():
    return ZOO["sd15"]()


@pytest.fixture
def env(pipe, scorer_paths):
    return gym.make("AdDiffusion-Diffusers-v0", pipe=pipe, scorers=scorer_paths, **SETTINGS)


def played(env, seed):
    env.reset(seed=seed, options={"prompt": "a red cup"})
    *_, info = env.step(1)
    return info["image"]


def test_a_network_that_is_replaced_draws_the_next_episode(env, pipe):
    before = played(env, 0)
    assert (played(env, 0) == before).all()
    torch.manual_seed(9)
    pipe.unet = UNet2DConditionModel.from_config(pipe.unet.config).eval()
    after = played(env, 0)
    assert (after != before).any()
    assert (
        played(gym.make("AdDiffusion-Diffusers-v0", pipe=pipe, scorers=env.unwrapped.settings.scorers, **SETTINGS), 0)
        == after
    ).all()


def test_a_network_of_another_kind_needs_another_environment(env, pipe):
    played(env, 0)
    pipe.unet = UNet2DConditionModel.from_config({**pipe.unet.config, "sample_size": 16}).eval()
    pipe.vae = (
        type(pipe.vae)
        .from_config(
            {
                **pipe.vae.config,
                "block_out_channels": [16],
                "down_block_types": ["DownEncoderBlock2D"],
                "up_block_types": ["UpDecoderBlock2D"],
            }
        )
        .eval()
    )
    pipe.vae_scale_factor = 1
    for _ in range(2):  # also the second time, when the model has been measured already
        with pytest.raises(CapabilityError, match=r"(?s)latent_shape .* -> .*make the environment again") as error:
            env.reset()
        assert "default_steps" not in str(error.value)  # what has not changed is not listed
