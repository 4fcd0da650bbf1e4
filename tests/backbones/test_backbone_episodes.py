"""Every architecture in the same environments: observation, refinement, early exit, vector env, learning, resuming."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import rounding
import torch

import addiffusion_env
from addiffusion_env.engine.process import Action
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import CapabilityError, ConfigError, UnknownNameError

SLOW = pytest.mark.slow  # one UNet and one transformer run in `make test`; the backbone is the same for all
NAMES = ("sd15", pytest.param("sd21", marks=SLOW), pytest.param("sdxl", marks=SLOW), "flux")
IDS = {
    "sd15": "AdDiffusion-SD15-v0",
    "sd21": "AdDiffusion-SD21-v0",
    "sdxl": "AdDiffusion-SDXL-v0",
    "flux": "AdDiffusion-FluxSchnell-v0",
}
PROMPTS = ["a photo of a red cup and a dog", "the cat on a sofa", "a dog left of a cup"]


@pytest.fixture
def settings(tiny, scorer_paths):
    def make(name, **changes):
        return {
            "name_or_path": str(tiny(name).folder),
            "device": "cpu",
            "backbone_options": tiny(name).options(),
            "scorers": scorer_paths,
            "prompts": PROMPTS,
            "steps": 4,
            **changes,
        }

    return make


def make(name, settings, **changes):
    return gym.make(IDS[name], disable_env_checker=True, **settings(name, **changes)).unwrapped


def play(env, actions, seed=0):
    env.reset(seed=seed)
    for action in actions:
        *_, terminated, truncated, info = env.step(action)
    return terminated, truncated, info


@pytest.mark.parametrize("name", NAMES)
def test_every_id_is_registered_with_its_backbone(name):
    assert addiffusion_env.ENVIRONMENTS[IDS[name]]["backbone"] == name
    assert IDS[name] in gym.registry


def test_sd15_observation_is_exactly_1672_numbers(settings):
    env = make("sd15", settings)
    observation, _ = env.reset(seed=0)
    assert {key: value.shape for key, value in observation.items()} == {
        "clip": (1536,),  # image and text of ViT-L/14
        "timestep": (128,),
        "quality": (8,),
    }
    assert sum(value.size for value in observation.values()) == 1672
    assert env.observation_space.contains(observation)
    observation, *_ = env.step(Action.CONTINUE)
    assert env.observation_space.contains(observation)
    np.testing.assert_allclose(np.linalg.norm(observation["clip"][:768]), 1, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_continuing_to_the_end(settings, name):
    env = make(name, settings)
    terminated, truncated, info = play(env, [Action.CONTINUE] * 4)
    assert (terminated, truncated) == (True, False)
    assert info["nfe"] == 4
    assert info["network_calls"] == (4 if name == "flux" else 8)
    assert info["image"].shape == (16, 16, 3)
    assert np.isfinite(info["preference"])


@pytest.mark.parametrize("name", NAMES)
def test_an_early_exit_takes_fewer_evaluations(settings, name):
    env = make(name, settings, early_exit_steps=2)
    terminated, _, info = play(env, [Action.CONTINUE, Action.STOP])
    assert terminated
    assert info["nfe"] == 3
    assert info["sigma"] == pytest.approx(float(env.episodes.backbone.sigmas(4, env.episodes.process.spacing)[-1]))
    assert info["image"].shape == (16, 16, 3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("preset", "nfe"), [("as_published", 3), ("resample_short", 2), ("weakest", 3.5)])
def test_refining(settings, name, preset, nfe):
    env = make(name, settings, refine=preset)
    env.reset(seed=0, options={"prompt": PROMPTS[0]})
    env.step(Action.CONTINUE)
    env.step(Action.CONTINUE)
    before, sigma = env.episodes.lane(0).latents.x.clone(), env.episodes.lane(0).sigma
    *_, info = env.step(Action.REFINE)
    lane = env.episodes.lane(0)
    # One evaluation for the maps (or half a phrase, which without guidance is a whole one) and two for the region.
    expected = 5 if (name, preset) == ("flux", "weakest") else nfe
    assert info["nfe"] == 2 + expected
    assert info["refinements"] == 1
    assert lane.sigma == sigma
    changed = (lane.latents.x - before).abs().amax(1)[0]
    assert bool(torch.isfinite(lane.latents.x).all())
    if preset == "as_published":
        mask = lane.masks[0]
        assert mask.shape == (8, 8)
        assert 0 <= mask.min() < 0.1 < mask.max() == 1
        outside = torch.from_numpy(mask) == 0
        assert float(changed[~outside].max()) > 1e-2
        if outside.any():
            assert float(changed[outside].max()) < 1e-3
    terminated = env.step(Action.STOP)[2]
    assert terminated


@pytest.mark.parametrize("name", NAMES)
def test_vector_env_equals_scalar_envs_row_by_row(settings, name):
    lanes = gym.make_vec(IDS[name], num_envs=3, **settings(name, early_exit_steps=2))
    single = [make(name, settings, early_exit_steps=2) for _ in range(3)]
    together, _ = lanes.reset(seed=7)
    alone = [env.reset(seed=7 + row)[0] for row, env in enumerate(single)]
    for actions in ([0, 0, 1], [2, 0, 0], [1, 0, 0]):
        for key in together:
            np.testing.assert_allclose(
                together[key], np.stack([o[key] for o in alone]), rtol=0, atol=rounding.SEEN, err_msg=key
            )
        together, reward, terminated, _, infos = lanes.step(np.array(actions))
        for row, env in enumerate(single):
            observation, own_reward, own_end, _, _ = env.step(actions[row])
            assert own_end == terminated[row]
            assert own_reward == pytest.approx(reward[row], abs=2e-3)
            alone[row] = env.reset()[0] if own_end else observation
    assert set(infos["final_info"]) >= {"image", "nfe"}


@pytest.mark.parametrize("name", NAMES)
def test_continuing_from_a_saved_state(settings, name):
    first, second = make(name, settings), make(name, settings)
    first.reset(seed=3)
    first.step(Action.CONTINUE)
    first.step(Action.REFINE)
    second.episodes.load_state_dict(first.episodes.state_dict())
    for action in (Action.CONTINUE, Action.STOP):
        ours, theirs = first.step(action), second.step(action)
        for key in ours[0]:
            np.testing.assert_allclose(ours[0][key], theirs[0][key], atol=1e-5)
    assert np.array_equal(ours[4]["image"], theirs[4]["image"])


@pytest.mark.parametrize("name", NAMES)
def test_one_ppo_update_and_resume(settings, name, tmp_path):
    from stable_baselines3 import PPO

    from addiffusion_env.envs.sb3_env import AdDiffusionVecEnv

    env = AdDiffusionVecEnv(2, **{"backbone": name, **settings(name, steps=2)})
    model = PPO("MultiInputPolicy", env, n_steps=4, batch_size=8, n_epochs=1, seed=0, device="cpu")
    before = [value.clone() for value in model.policy.parameters()]
    model.learn(8)
    assert model.num_timesteps == 8
    assert any(not torch.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))
    model.save(tmp_path / "model")
    resumed = PPO.load(tmp_path / "model", env=env, device="cpu")
    resumed.learn(8, reset_num_timesteps=False)
    assert resumed.num_timesteps == 16


def test_one_backbone_object_serves_many_environments(tiny, scorer_paths):
    backbone = tiny("sdxl").load()
    settings = {"scorers": scorer_paths, "prompts": PROMPTS, "steps": 2}
    first = gym.make(IDS["sdxl"], disable_env_checker=True, **{"backbone": backbone, **settings}).unwrapped
    second = gym.make(IDS["sdxl"], disable_env_checker=True, **{"backbone": backbone, **settings}).unwrapped
    assert first.episodes.backbone is second.episodes.backbone is backbone
    assert first.episodes.scorers is second.episodes.scorers


def test_what_a_backbone_cannot_do_is_refused(settings):
    with pytest.raises(CapabilityError, match="'flux' has no guidance, got guidance_scale=4"):
        make("flux", settings, guidance_scale=4)


def test_scorers_by_path_are_checked(settings):
    with pytest.raises(ConfigError, match="did you mean 'clip'"):
        make("sd15", settings, scorers={"clp": "/nowhere"})
    with pytest.raises(UnknownNameError, match="did you mean 'image_reward_package'"):
        EnvSettings.of(backbone="sd15", scorers={"preference": "image_reward_pakage"})
    with pytest.raises(ConfigError, match="the emoji world has its own scorers"):
        gym.make("AdDiffusion-Emoji-v0", scorers={"clip": "/nowhere"})
