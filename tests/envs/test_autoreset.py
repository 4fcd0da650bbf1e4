"""Gymnasium's three autoreset modes: equality with SyncVectorEnv, and every vector wrapper in the modes it allows."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector as vector_wrappers

from addiffusion_env.envs.vector_env import AdDiffusionVectorEnv
from addiffusion_env.errors import ConfigError, EpisodeOverError, UnknownNameError

ID = "AdDiffusion-Emoji-v0"
SETTINGS = {"steps": 3, "refine": "as_published", "max_decisions": 3, "guidance_scale": 1.0}
TINY = {"steps": 2, "refine": "off", "early_exit_steps": 0, "guidance_scale": 1.0}


def made(mode, lanes=2, **settings):
    return gym.make_vec(ID, num_envs=lanes, autoreset_mode=mode, **{**TINY, **settings})


def sync(mode, lanes, **settings):
    kwargs = {"autoreset_mode": AutoresetMode[mode.upper()]}
    return gym.make_vec(ID, num_envs=lanes, vectorization_mode="sync", vector_kwargs=kwargs, **settings)


def assert_alike(ours, theirs, where=""):
    """Equal keys, types, shapes, texts, counts and ends; scores and pixels up to rounding (by batch size)."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_alike(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(ours, tuple) or (isinstance(ours, np.ndarray) and ours.dtype == object):
        for one, other in zip(ours, theirs, strict=True):
            assert_alike(one, other, where)
    elif isinstance(ours, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), where
        tolerance = 1e-3 if ours.dtype.kind == "f" else 1 if where.endswith("/image") else 0
        np.testing.assert_allclose(ours.astype(float), theirs.astype(float), rtol=0, atol=tolerance, err_msg=where)
    else:
        assert ours == theirs, where


@pytest.mark.parametrize(("mode", "limit"), [("next_step", 2), ("same_step", None), ("disabled", None)])
def test_rows_equal_gymnasiums_own_vector_environment(mode, limit):
    """Infos and their masks too; ``max_episode_steps`` truncates as ``TimeLimit`` does."""
    ours = gym.make_vec(ID, num_envs=3, autoreset_mode=mode, max_episode_steps=limit, **SETTINGS)
    theirs = sync(mode, 3, max_episode_steps=limit, **SETTINGS)
    assert ours.autoreset_mode is theirs.autoreset_mode is ours.metadata["autoreset_mode"]
    assert_alike(ours.reset(seed=[5, 9, 7]), theirs.reset(seed=[5, 9, 7]))
    over = np.zeros(3, bool)
    ends = 0
    for actions in ([0, 0, 1], [2, 0, 0], [0, 1, 2], [1, 0, 0]):
        if mode == "disabled" and over.any():
            options = [{"reset_mask": over.copy()} for _ in range(2)]
            assert_alike(*(env.reset(options=own) for env, own in zip((ours, theirs), options, strict=True)))
            assert "reset_mask" in options[0]  # the caller's dict is not modified
        stepped = ours.step(np.array(actions))
        for one, other, what in zip(stepped, theirs.step(np.array(actions)), "orctu", strict=True):
            assert_alike(one, other, what)
        over = stepped[2] | stepped[3]
        ends += over.sum()
    assert ends >= 3


def test_next_step_ignores_the_action_of_a_lane_that_resets():
    env = made("next_step")
    env.reset(seed=0)
    first = env.step(np.array([1, 0]))
    assert first[2].tolist() == [True, False] and first[4]["image"][0].any()
    _, reward, terminated, _, infos = env.step(np.array([2, 1]))  # refine is illegal, but ignored
    assert reward[0] == 0 and terminated.tolist() == [False, True]
    assert (infos["action"].tolist(), infos["step"][0]) == ([-1, 1], 0)
    assert infos["prompt"][0] != first[4]["prompt"][0]


def test_disabled_waits_for_a_reset_of_the_lanes_that_ended():
    env = made("disabled", lanes=3)
    begun, _ = env.reset(seed=0)
    observation, _, terminated, truncated, infos = env.step(np.array([1, 0, 1]))
    with pytest.raises(EpisodeOverError, match=r"lane 0 .* after its episode ended\n.*reset_mask"):
        env.step(np.array([0, 0, 0]))
    again, fresh = env.reset(seed=[0, None, None], options={"reset_mask": terminated | truncated})
    np.testing.assert_array_equal(again["clip"][1], observation["clip"][1])  # unchanged
    np.testing.assert_array_equal(again["clip"][0], begun["clip"][0])  # its first episode once more
    assert fresh["_prompt"].tolist() == [True, False, True] and fresh["prompt"][0] == infos["prompt"][0]
    assert env.step(np.array([1, 1, 1]))[2].all()


@pytest.mark.parametrize("mask", [np.zeros(2, bool), np.ones(3, bool), np.ones(2), "all", [1, 0]])
def test_an_invalid_mask_is_refused(mask):
    env = made("disabled")
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"options\['reset_mask'\] must be \(2,\) bool"):
        env.reset(options={"reset_mask": mask})


def test_the_first_reset_is_of_all_lanes():
    with pytest.raises(EpisodeOverError, match="lane 1 was never reset"):
        made("disabled").reset(options={"reset_mask": np.array([True, False])})


def test_seeds_of_some_lanes():
    env = made("same_step", lanes=3)
    _, infos = env.reset(seed=[3, None, np.int64(4)])
    texts = infos["prompt"]
    assert [texts[0], texts[2]] == [gym.make(ID, **TINY).reset(seed=seed)[1]["prompt"] for seed in (3, 4)]
    drawn = env.episodes.slots[1].seed
    _, infos = env.reset(seed=[3, None, None])  # lanes without one continue
    assert infos["prompt"][0] == texts[0] and infos["prompt"][2] != texts[2]
    assert (env.episodes.slots[1].seed, env.episodes.slots[1].episode) == (drawn, 1)
    assert env.reset(seed=np.int64(8))[1]["prompt"][0] == env.reset(seed=[8, 9, 10])[1]["prompt"][0]


@pytest.mark.parametrize("name", ["SAME_STEP", "NEXT_STEP", "DISABLED"])
def test_a_mode_by_name_value_or_enum(name):
    mode = AutoresetMode[name]
    for given in (mode, mode.value, name.lower()):
        assert AdDiffusionVectorEnv(1, autoreset_mode=given, **TINY).autoreset_mode is mode
    assert (
        AdDiffusionVectorEnv.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    )  # the class attribute is the default


def test_bad_arguments_of_the_vector_environment():
    with pytest.raises(UnknownNameError, match="unknown autoreset_mode 'nextstep'\n  -> did you mean 'next_step'"):
        AdDiffusionVectorEnv(1, autoreset_mode="nextstep")
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'autoreset'.*\n.*did you mean 'autoreset_mode'"):
        AdDiffusionVectorEnv(1, autoreset=True)
    with pytest.raises(ConfigError, match="max_episode_steps must be at least 1, got 0"):
        AdDiffusionVectorEnv(1, max_episode_steps=0)
    assert AdDiffusionVectorEnv(1, max_episode_steps=-1, **TINY).settings.max_decisions is None


def test_a_mode_survives_the_spec_as_json():
    spec = made("next_step").spec
    again = gym.make_vec(gym.envs.registration.EnvSpec.from_json(spec.to_json()))
    assert (again.autoreset_mode, again.num_envs) == (AutoresetMode.NEXT_STEP, 2)


# ------------------------------------------------------------------------------------------------ vector wrappers
def flat(env):
    return vector_wrappers.FlattenObservation(env)


def clip_of(env, wrapper):
    spaces = (env.observation_space["clip"], env.single_observation_space["clip"])
    return wrapper(env, lambda seen: seen["clip"], *spaces)


WRAPPERS = {
    "VectorizeTransformObservation": lambda env: vector_wrappers.VectorizeTransformObservation(
        env,
        wrappers.TransformObservation,
        func=lambda seen: seen["clip"],
        observation_space=env.single_observation_space["clip"],
    ),
    "VectorizeTransformAction": lambda env: vector_wrappers.VectorizeTransformAction(
        env, wrappers.TransformAction, func=lambda action: action, action_space=gym.spaces.Discrete(3)
    ),
    "VectorizeTransformReward": lambda env: vector_wrappers.VectorizeTransformReward(
        env, wrappers.TransformReward, func=lambda reward: reward + 1
    ),
    "TransformObservation": lambda env: clip_of(env, vector_wrappers.TransformObservation),
    "FilterObservation": lambda env: vector_wrappers.FilterObservation(env, ["clip", "quality"]),
    "FlattenObservation": flat,
    "ReshapeObservation": lambda env: vector_wrappers.ReshapeObservation(flat(env), (2, 196)),
    "RescaleObservation": lambda env: vector_wrappers.RescaleObservation(flat(env), np.float32(0), np.float32(1)),
    "DtypeObservation": lambda env: vector_wrappers.DtypeObservation(flat(env), np.float64),
    "NormalizeObservation": lambda env: vector_wrappers.NormalizeObservation(flat(env)),
    "DictInfoToList": vector_wrappers.DictInfoToList,
    "TransformAction": lambda env: vector_wrappers.TransformAction(env, lambda actions: actions),
    "TransformReward": lambda env: vector_wrappers.TransformReward(env, lambda reward: 2 * reward),
    "ClipReward": lambda env: vector_wrappers.ClipReward(env, -1, 1),
    "NormalizeReward": vector_wrappers.NormalizeReward,
    "RecordEpisodeStatistics": vector_wrappers.RecordEpisodeStatistics,
}
OBSERVATION = {name for name in WRAPPERS if name.endswith("Observation")}
OTHERS = {  # for other spaces, or tested elsewhere with the packages that they need
    "GrayscaleObservation": "images",
    "ResizeObservation": "images",
    "ClipAction": "Box actions",
    "RescaleAction": "Box actions",
    "RecordVideo": "below",
    "HumanRendering": "needs opencv",
    "ArrayConversion": "needs an array library; it also spoils texts in infos",
    "JaxToNumpy": "needs jax",
    "JaxToTorch": "needs jax",
    "NumpyToTorch": "needs array-api-compat, and refuses texts in infos",
}


def allowed(name, mode):
    if name == "NormalizeObservation":
        return mode == "next_step"
    return not (name in OBSERVATION and mode == "same_step")


def test_every_wrapper_is_known_here():
    assert set(vector_wrappers.__all__) == {*WRAPPERS, *OTHERS}


@pytest.mark.parametrize("mode", ["next_step", "same_step", pytest.param("disabled", marks=pytest.mark.slow)])
def test_every_vector_wrapper_in_the_modes_that_it_allows(mode):
    base, first = made(mode), {}
    for name, wrap in WRAPPERS.items():
        if not allowed(name, mode):
            with pytest.raises(ValueError, match="autoreset_mode"):
                wrap(base)
            continue
        env = wrap(base)
        observation, _ = env.reset(seed=0)
        assert env.observation_space.contains(observation), name
        rewards = []
        for actions in ([0, 1], [0, 0]):  # lane 1 ends, then is reset
            if mode == "disabled" and rewards:
                env.reset(options={"reset_mask": np.array([False, True])})
            observation, reward, terminated, truncated, infos = env.step(np.array(actions))
            assert env.observation_space.contains(observation), name
            assert reward.shape == terminated.shape == truncated.shape == (2,)
            assert len(infos) > 1, name
            rewards.append(reward)
        first[name] = rewards[0]
    plain = first["RecordEpisodeStatistics"]
    np.testing.assert_allclose(first["VectorizeTransformReward"], plain + 1, atol=1e-6)
    np.testing.assert_allclose(first["TransformReward"], 2 * plain, atol=1e-6)


def test_flattened_observations_feed_a_loop_like_cleanrls():
    """32 steps of PPO's storage; every stored action that was ignored belongs to a reset step."""
    env = vector_wrappers.RecordEpisodeStatistics(flat(made("next_step")))
    seen, _ = env.reset(seed=1)
    assert seen.shape == (2, 392)
    store, resets, next_done = [], 0, np.zeros(2)
    rng = np.random.default_rng(0)
    for _ in range(16):
        resets += int(next_done.sum())
        following, reward, terminated, truncated, infos = env.step(rng.integers(0, 3, 2))
        store.append((seen, reward, next_done))
        assert (reward[next_done.astype(bool)] == 0).all()
        if "episode" in infos:
            assert set(infos["episode"]["l"][infos["_episode"]]) <= {1, 2}
        seen, next_done = following, np.logical_or(terminated, truncated)
    assert np.concatenate([row[0] for row in store]).shape == (32, 392)
    assert resets == sum(int(row[2].sum()) for row in store) > 5


def test_a_reader_like_rllibs_records_the_decisions_that_were_played():
    """It assumes next_step mode: the step after the end of an episode is a reset."""
    env = vector_wrappers.DictInfoToList(made("next_step", steps=3))
    env.reset(seed=1)
    rng = np.random.default_rng(0)
    recorded, begins, compared = [[], []], [False, False], 0
    for _ in range(12):
        actions = rng.integers(0, 2, 2)
        _, _, terminated, truncated, infos = env.step(actions)
        for lane, info in enumerate(infos):
            if begins[lane]:
                recorded[lane] = []
            else:
                recorded[lane].append(int(actions[lane]))
            begins[lane] = bool(terminated[lane] or truncated[lane])
            if begins[lane]:
                assert info["action_trace"][info["action_trace"] >= 0].tolist() == recorded[lane]
                compared += 1
    assert compared > 5


@pytest.mark.parametrize("mode", ["next_step", "disabled"])
def test_videos_show_the_finished_image(mode, tmp_path):
    env = made(mode, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # same_step warns that the last frame is missing
        warnings.filterwarnings("ignore", message=".*Overwriting existing videos.*")
        recorded = vector_wrappers.RecordVideo(env, str(tmp_path), episode_trigger=lambda _: True)
    recorded.reset(seed=0)
    *_, infos = recorded.step(np.array([1, 1]))
    shown = env.render()[0][:256:4, :256:4]
    np.testing.assert_array_equal(shown, infos["image"][0])
    recorded.close()


def test_lists_of_frames_as_through_make():
    ours, scalar = made("same_step", render_mode="rgb_array_list"), gym.make(ID, render_mode="rgb_array_list", **TINY)
    ours.reset(seed=0)
    ours.step(np.array([0, 0]))
    scalar.reset(seed=0)
    scalar.step(0)
    assert ours.render_mode == "rgb_array_list"
    lists, expected = ours.render(), scalar.render()
    assert [len(lane) for lane in lists] == [2, 2]
    np.testing.assert_allclose(lists[0], expected, atol=1)
    assert ours.render() == ([], [])  # already returned
    with pytest.raises(UnknownNameError, match="unknown render_mode 'human_list'"):
        made("same_step", render_mode="human_list")
