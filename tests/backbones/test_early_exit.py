"""Cost of an early exit, and the noise levels of its evaluations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from addiffusion_env.backbones.schedules import AUTO_EARLY_EXIT_STEPS, early_exit_evaluations, respace
from addiffusion_env.errors import ConfigError

GRID = np.array([14.6, 9.0, 5.0, 3.0, 1.5, 0.6, 0.2, 0.0])


@pytest.mark.parametrize("evaluations", range(1, 8))
def test_same_ends_and_falling(evaluations):
    grid = respace(GRID, evaluations)
    assert len(grid) == evaluations + 1
    assert grid[0] == GRID[0]
    assert grid[-1] == 0.0
    assert (np.diff(grid) < 0).all()


def test_all_that_is_left_is_the_schedule_itself():
    np.testing.assert_allclose(respace(GRID, len(GRID) - 1), GRID)


def test_every_second_level():
    grid = np.array([16.0, 8.0, 4.0, 2.0, 1.0])
    np.testing.assert_allclose(respace(grid, 2), [16.0, 4.0, 1.0])


def test_levels_between_are_log_linear():
    np.testing.assert_allclose(respace(np.array([8.0, 4.0, 2.0, 1.0]), 2), [8.0, 8.0**0.5, 1.0])


def test_no_evaluation_stays():
    assert respace(GRID, 0).tolist() == [14.6]


@pytest.mark.parametrize("rest", [[2.0, 0.0], [2.0, 0.03], [1.0, 0.5, 0.0]])
def test_short_schedules(rest):
    assert respace(np.array(rest), 1).tolist() == [rest[0], rest[-1]]


def test_more_than_is_left_is_refused():
    with pytest.raises(ConfigError, match="8 evaluations does not fit 7 remaining steps"):
        respace(GRID, 8)
    with pytest.raises(ConfigError, match="-1 evaluations"):
        respace(GRID, -1)


def test_auto_takes_steps_no_longer_than_six_in_all():
    assert early_exit_evaluations("auto", 1.0, 50) == AUTO_EARLY_EXIT_STEPS
    assert early_exit_evaluations("auto", 0.5, 25) == 3
    assert early_exit_evaluations("auto", 0.51, 25) == 4
    assert early_exit_evaluations("auto", 0.01, 50) == 1
    for position in np.linspace(0.01, 1, 50):
        assert position / early_exit_evaluations("auto", position, 50) <= 1 / AUTO_EARLY_EXIT_STEPS + 1e-6


def test_never_more_than_continuing_would_cost():
    assert early_exit_evaluations("auto", 1.0, 4) == 4
    assert early_exit_evaluations(10, 0.5, 3) == 3
    assert early_exit_evaluations("auto", 0.0, 0) == 0
    assert early_exit_evaluations(0, 0.5, 3) == 0


@pytest.mark.parametrize("value", [-1, True, "all"])
def test_bad_early_exit_steps(value):
    with pytest.raises(ConfigError, match="early_exit_steps"):
        early_exit_evaluations(value, 0.5, 3)


@pytest.mark.parametrize("steps", [0, 2, "auto"])
def test_a_backbones_early_exits_are_the_respaced_rest(emoji, steps):
    rest = emoji.sigmas(8, "trailing")[2:]
    positions = emoji.timestep_position(torch.from_numpy(rest)).numpy().copy()
    evaluations = early_exit_evaluations(steps, float(positions[0]), len(rest) - 1)
    positions[-1] = 0.0
    expected = respace(rest, evaluations, positions).tolist()
    assert emoji.early_exit_levels(rest, steps).tolist() == expected
    assert emoji.early_exit_levels(rest.copy(), steps).tolist() == expected  # the second time from memory
    assert emoji.early_exit_levels(rest[-2:], 1) is not emoji.early_exit_levels(rest[-3:], 1)


def test_a_remembered_early_exit_is_no_part_of_the_identity(emoji):
    before = emoji.identity
    emoji.early_exit_levels(emoji.sigmas(7, "trailing")[3:], 1)
    assert emoji.identity == before
