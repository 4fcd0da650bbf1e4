"""Rendering: frames, filmstrips, regions, the window, Gymnasium's recording wrappers."""

import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import RecordEpisodeStatistics, RecordVideo
from gymnasium.wrappers.vector import RecordEpisodeStatistics as RecordVectorStatistics
from gymnasium.wrappers.vector import RecordVideo as RecordVectorVideo

from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.envs.env import AdDiffusionEnv
from addiffusion_env.envs.rendering import ACTION_COLOURS, Cell, draw_filmstrip, overlay_mask, tiled
from addiffusion_env.envs.settings import refine_config
from addiffusion_env.envs.vector_env import AdDiffusionVectorEnv
from addiffusion_env.errors import ConfigError, MissingPackageError, UnknownNameError

PROMPT = {"prompt": "a photo of a red cup left of a dog"}
BAR_PLACE = (96 + 4, 40)  # row and column within the first cell's bar


def begun(render_mode, refine="resample_short", **settings):
    env = AdDiffusionEnv(steps=3, refine=refine, render_mode=render_mode, **settings)
    env.reset(seed=0, options=PROMPT)
    return env


def test_a_region_is_a_value_in_info_and_marked_in_the_frame():
    env = begun("rgb_array", refine="as_published")
    *_, info = env.step(0)
    assert not info["refine_mask"].any()
    *_, info = env.step(2)
    mask = info["refine_mask"]
    assert mask.shape == (16, 16) and 0 <= mask.min() < 0.5 < mask.max() <= 1
    frame = env.render()
    amber = (frame[:256] == ACTION_COLOURS[2]).all(-1)
    assert frame.shape == (296, 256, 3) and amber.any()
    *_, info = env.step(0)
    assert not info["refine_mask"].any()  # only of the last action
    assert not (env.render()[:256] == ACTION_COLOURS[2]).all(-1).any()


def test_a_whole_image_resample_has_no_region():
    env = begun("rgb_array", refine="resample_short")
    env.step(0)
    *_, info = env.step(2)
    assert info["refinements"] == 1 and "refine_mask" not in info


def test_overlay_tints_by_strength_and_outlines_the_region():
    pixels = np.full((40, 40, 3), 100, np.uint8)
    mask = np.zeros((4, 4), np.float32)
    mask[1:3, 1:3] = 1
    shown = overlay_mask(pixels, mask)
    assert (shown[0, 0] == 100).all()
    expected = 100 * 0.65 + 0.35 * np.array(ACTION_COLOURS[2])
    np.testing.assert_allclose(shown[20, 20], expected, atol=1)
    outline = (shown == ACTION_COLOURS[2]).all(-1)
    assert 50 < outline.sum() < 120 and not outline[20, 20]
    np.testing.assert_array_equal(overlay_mask(pixels, np.zeros((4, 4))), pixels)


def test_a_filmstrip_grows_by_one_cell_per_decision_and_keeps_its_size():
    env = begun("filmstrip", refine="as_published")
    size = env.render().shape
    assert (env.render() == 255).all()  # no decision yet
    for place, action in enumerate([0, 2, 1]):
        env.step(action)
        filmstrip = env.render()
        assert filmstrip.shape == size
        assert (filmstrip[BAR_PLACE[0], BAR_PLACE[1] + 96 * place] == ACTION_COLOURS[action]).all()
        assert (filmstrip[:, 96 * (place + 1) : 96 * 10] == 255).all()
    env.reset()
    assert (env.render() == 255).all()


def test_no_cells_are_kept_without_the_filmstrip_mode():
    assert begun(None).render() is None
    assert not begun("rgb_array").view.filmstrips[0]


def test_longest_episode_is_as_long_as_one_that_does_everything():
    for process in (
        ProcessConfig(steps=3, refine=refine_config({"preset": "resample_short", "limit": 2})),
        ProcessConfig(
            steps=6,
            decide_at=(3, 4),
            check_finished=True,
            refine=refine_config({"preset": "resample_keep_best", "limit": 2}),
        ),
        ProcessConfig(steps=3, refine=refine_config("off")),
    ):
        settings = {"refine": process.refine, "decide_at": process.decide_at, "check_finished": process.check_finished}
        env = AdDiffusionEnv(steps=process.steps, render_mode="filmstrip", **settings)
        env.reset(seed=0, options=PROMPT)
        decisions, over = 0, False
        while not over:
            legal = env.action_masks()
            # Refine as late as possible, so that every attempt is as long as possible.
            last = env.episodes.lane(0).remaining <= 1
            action = 2 if legal[2] and (last or process.refine.return_to is None) else 0 if legal[0] else 1
            over = env.step(action)[2]
            decisions += 1
        assert decisions == process.longest_episode


def test_a_long_strip_shows_its_end():
    cells = [Cell(np.zeros((8, 8, 3), np.uint8), action) for action in (0, 0, 0, 1)]
    filmstrip = draw_filmstrip(cells, room=2)
    assert filmstrip.shape == (122, 192, 3)
    assert (filmstrip[BAR_PLACE[0], BAR_PLACE[1] + 96] == ACTION_COLOURS[1]).all()


def test_lists_of_frames_through_make():
    env = gym.make("AdDiffusion-Emoji-v0", steps=2, render_mode="rgb_array_list")
    env.reset(seed=0)
    env.step(0)
    assert [frame.shape for frame in env.render()] == [(296, 256, 3)] * 2


def test_an_unknown_mode_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'rgb_array'"):
        AdDiffusionEnv(render_mode="rgb_aray")


# ------------------------------------------------------------------------------------------------ the window


@pytest.fixture
def screen(monkeypatch):
    """A screen in memory: SDL draws to it as to a real one."""
    pytest.importorskip("pygame", reason="render_mode='human' needs the extra [render]")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


def test_human_mode_shows_what_rgb_array_draws(screen):
    shown, drawn = begun("human"), begun("rgb_array")
    for action in (0, 1):
        shown.step(action)
        drawn.step(action)
        np.testing.assert_array_equal(shown.view.window.pixels(), drawn.render())
    assert shown.render() is None  # as in Gymnasium: reset and step update the window
    shown.close()
    shown.close()
    assert shown.view.window is None


def test_human_mode_tiles_the_lanes_of_a_vector_environment(screen):
    env = AdDiffusionVectorEnv(3, steps=2, refine="off", render_mode="human")
    env.reset(seed=0)
    env.step(np.zeros(3, int))
    assert env.view.window.pixels().shape == (592, 512, 3)
    assert env.render() is None
    env.close()


def test_human_mode_without_a_screen_says_what_to_do(monkeypatch):
    pytest.importorskip("pygame", reason="render_mode='human' needs the extra [render]")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER", "SDL_VIDEO_DRIVER"):
        monkeypatch.delenv(name, raising=False)
    if sys.platform != "linux":
        pytest.skip("other systems have a screen without a variable that says so")
    with pytest.raises(ConfigError, match=r"needs a screen.*\n.*rgb_array"):
        begun("human")


def test_human_mode_without_pygame_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(MissingPackageError, match=r"addiffusion-env\[render\]"):
        begun("human")


def test_tiles_are_filled_up_with_black():
    frames = [np.full((2, 3, 3), value, np.uint8) for value in (1, 2, 3)]
    sheet = tiled(frames)
    assert sheet.shape == (4, 6, 3)
    assert (sheet[:2, 3:] == 2).all() and (sheet[2:, :3] == 3).all() and not sheet[2:, 3:].any()


# ------------------------------------------------------------------------------------------------ Gymnasium's wrappers


def frames_of(path):
    """Number and size of a video's frames."""
    from moviepy import VideoFileClip

    with VideoFileClip(str(path)) as clip:
        return len(list(clip.iter_frames())), tuple(clip.size)


@pytest.mark.parametrize(("mode", "size"), [("rgb_array", (256, 296)), ("filmstrip", (960, 122))])
def test_record_video(mode, size, tmp_path):
    pytest.importorskip("moviepy", reason="RecordVideo needs the extra [render]")
    env = RecordVideo(gym.make("AdDiffusion-Emoji-v0", steps=6, render_mode=mode), str(tmp_path), lambda episode: True)
    env.reset(seed=0)
    for action in (0, 2, 1):
        env.step(action)
    env.close()
    [path] = tmp_path.glob("*.mp4")
    assert frames_of(path) == (4, size)  # the reset and three decisions


def test_record_video_of_a_vector_environment(tmp_path):
    pytest.importorskip("moviepy", reason="RecordVideo needs the extra [render]")
    env = gym.make_vec("AdDiffusion-Emoji-v0", num_envs=2, steps=3, refine="off", render_mode="rgb_array")
    env = RecordVectorVideo(env, str(tmp_path), record_first_only=True, video_length=2, step_trigger=lambda s: s == 0)
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.zeros(2, int))
    env.close()
    assert [path for path in tmp_path.rglob("*.mp4") if path.stat().st_size]


def test_record_episode_statistics():
    env = RecordEpisodeStatistics(gym.make("AdDiffusion-Emoji-v0", steps=3))
    env.reset(seed=0)
    rewards, over = [], False
    while not over:
        _, reward, over, _, info = env.step(0)
        rewards.append(reward)
    assert info["episode"]["l"] == 3 and info["episode"]["r"] == pytest.approx(sum(rewards), abs=1e-6)


def test_record_episode_statistics_of_a_vector_environment():
    env = RecordVectorStatistics(gym.make_vec("AdDiffusion-Emoji-v0", num_envs=2, steps=3, refine="off"))
    env.reset(seed=0)
    total = np.zeros(2)
    for actions in ([0, 0], [0, 1], [0, 0]):
        _, reward, terminated, _, infos = env.step(np.array(actions))
        total += reward
        if terminated[1]:
            assert infos["episode"]["l"].tolist() == [0, 2]
            assert infos["episode"]["r"][1] == pytest.approx(total[1], abs=1e-5)
    assert infos["episode"]["l"].tolist() == [3, 0] and infos["episode"]["r"][0] == pytest.approx(total[0], abs=1e-5)


def test_a_vector_environments_masks_and_filmstrips():
    env = AdDiffusionVectorEnv(2, steps=3, refine="as_published", render_mode="filmstrip")
    env.reset(seed=0)
    env.step(np.array([0, 0]))
    *_, infos = env.step(np.array([2, 1]))
    assert infos["refine_mask"].shape == (2, 16, 16) and infos["refine_mask"].any((1, 2)).tolist() == [True, False]
    filmstrips = env.render()
    # Lane 1 has ended and was reset; its filmstrip still shows the whole old episode.
    assert (filmstrips[1][BAR_PLACE[0], BAR_PLACE[1] + 96] == ACTION_COLOURS[1]).all()
    env.step(np.array([0, 0]))
    assert (env.render()[1][BAR_PLACE[0], BAR_PLACE[1] + 96] == 255).all()
