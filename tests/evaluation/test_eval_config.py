"""Keys of configs/eval.yaml: a wrong value is refused by name before anything is loaded."""

from dataclasses import fields

import pytest

import eval_sb3
from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.eval_config import EvaluationConfig, changed
from addiffusion_env.evaluation.extras import EXTRAS


def test_it_has_the_keys_of_the_file_and_takes_its_values():
    defaults = eval_sb3.defaults()
    assert {*(item.name for item in fields(EvaluationConfig)), *EXTRAS} == set(defaults)
    assert EvaluationConfig.of(defaults).seeds == [0]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("methods", "fixed:8", r"methods must be a list of str, got 'fixed:8'"),
        ("methods", [], r"methods is empty and there is no policy"),
        ("judges", "emoji_detector", r"judges must be a list of str, got 'emoji_detector'"),
        ("prompts", "lots", r"prompts must be int or null, got 'lots'"),
        ("prompts", 0, r"prompts must be at least 1, got 0"),
        ("seeds", 0, r"seeds must be a list of int, got 0"),
        ("seeds", [], r"seeds must be one number or more, each at least 0, got \[\]"),
        ("seeds", [-1], r"seeds must be one number or more, each at least 0, got \[-1\]"),
        ("prices", 0.02, r"prices must be a list of float or null, got 0\.02"),
        ("prices", ["cheap"], r"prices must be a list of float or null, got \['cheap'\]"),
        ("prices", [-1.0], r"prices must be one number or more, each at least 0"),
        ("max_lanes", "eight", r"max_lanes must be at least 1, or auto, got 'eight'"),
        ("shard_size", 0, r"shard_size must be at least 1, got 0"),
        ("metrics", "psnr", r"metrics must be mapping or null, got 'psnr'"),
        ("films", "no", r"films must be bool, got 'no'"),
        ("margin", -0.1, r"margin must be above 0"),
        ("margin", 0, r"margin must be above 0"),
        ("seeds", [0, 2**63], r"seeds must be at most 9223372036854775807"),
    ],
)
def test_a_wrong_value_is_named(key, value, words):
    with pytest.raises(ConfigError, match=words):
        changed(eval_sb3.defaults(), {key: value})


def test_a_report_is_checked_before_the_training():
    eval_sb3.check_report(None)
    eval_sb3.check_report({"prompts": 4, "methods": ["fixed:4"]})
    with pytest.raises(ConfigError, match="did you mean 'methods'"):
        eval_sb3.check_report({"metods": ["fixed:4"]})
    with pytest.raises(LookupError, match="did you mean 'fixed'"):
        eval_sb3.check_report({"methods": ["fixd:4"]})
    with pytest.raises(ConfigError, match="must be a mapping, got 3"):
        eval_sb3.check_report(3)
