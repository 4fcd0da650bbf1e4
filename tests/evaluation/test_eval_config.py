"""Keys of configs/eval.yaml: a wrong value is refused by name before anything is loaded."""

from dataclasses import fields

import pytest

import eval_sb3
from addiffusion_env.errors import ConfigError, UnknownNameError
from addiffusion_env.evaluation.eval_config import EvaluationConfig, changed, extras_in
from addiffusion_env.evaluation.extras import EXTRAS, Extra
from addiffusion_env.registry import Registry


def test_it_has_the_keys_of_the_file_and_takes_its_values():
    defaults = eval_sb3.defaults()
    assert {*(item.name for item in fields(EvaluationConfig)), *EXTRAS} == set(defaults)
    assert EvaluationConfig.of(defaults).seeds == [0]


@pytest.mark.parametrize(
    ("key", "value"),
    [  # a type, then what an evaluation asks beyond types; the sentences are those of tests/test_settings.py
        ("costs_per_nfe", ["cheap"]),
        ("prompts", 0),
        ("shard_size", 0),
        ("max_lanes", "eight"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(key, value):
    with pytest.raises(ConfigError, match=f"^{key} must be "):
        changed(eval_sb3.defaults(), {key: value})


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("samplers", [], "samplers is empty and there is no policy"),
        ("margin", 0, "a margin must be above 0, got 0"),
        ("seeds", [], r"seeds must be one or more numbers, each at least 0, got \[\]"),
        ("costs_per_nfe", [-1.0], r"costs_per_nfe must be one or more numbers, each at least 0, got \[-1.0\]"),
        ("seeds", [0, 2**63], "seeds must be at most 9223372036854775807"),
    ],
)
def test_what_only_an_evaluation_refuses(key, value, sentence):
    with pytest.raises(ConfigError, match=sentence):
        changed(eval_sb3.defaults(), {key: value})


def test_a_report_is_checked_before_the_training():
    eval_sb3.check_report(None)
    eval_sb3.check_report({"prompts": 4, "samplers": ["fixed:4"]})
    with pytest.raises(ConfigError, match="did you mean 'samplers'"):
        eval_sb3.check_report({"sampelrs": ["fixed:4"]})
    with pytest.raises(LookupError, match="did you mean 'fixed'"):
        eval_sb3.check_report({"samplers": ["fixd:4"]})
    with pytest.raises(ConfigError, match="must be a mapping, got 3"):
        eval_sb3.check_report(3)


def test_a_report_checks_extras_before_the_training():
    with pytest.raises(ConfigError, match="metrics must be mapping or null, got 'psnr'"):
        eval_sb3.check_report({"metrics": "psnr"})


def test_a_setting_of_no_extra_is_refused(monkeypatch):
    class Notes(Extra):
        """Counts."""

        takes = list

    monkeypatch.setitem(EXTRAS._entries, "notes", f"{__name__}:unused")
    monkeypatch.setattr(Registry, "load", lambda self, name: Notes)
    assert extras_in({"notes": ["a"], "hypotheses": None, "seeds": [0]}) == {"notes": Notes}
    with pytest.raises(UnknownNameError, match=r"unknown setting of an evaluation 'hypothesis'\n.*'hypotheses'"):
        extras_in({"hypothesis": {}})
