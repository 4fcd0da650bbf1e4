"""Specifications of methods: read, named, refused."""

import pytest

from addiffusion_env.baselines import make_method
from addiffusion_env.baselines.base import BaseMethod, Method
from addiffusion_env.errors import ConfigError, UnknownNameError, WeightsError

SPECS = (
    "fixed:20",
    "fixed:50,leading",
    "fixed:10,trailing,dpmpp_2m",
    "stop:6",
    "random:0.1",
    "prompt_rule:8,6",
    "best_of:3x6",
    "threshold_retry:0.8",
    "threshold_retry:-0.5,6,3",
    "fixed:10,trailing,unipc",
    "interval:fixed:6",
    "interval:threshold_retry:0.4,6,4",
    "oracle_stop:clip_score",
    "lcm:4",
    "lcm:8,/weights/lcm",
    "turbo:1",
    "turbo:4,/weights/turbo",
    "sag:20",
    "sag:20,0.5",
    "attend_excite:20",
    "fbcache:20,0.1",
)


@pytest.mark.parametrize("spec", SPECS)
def test_a_specification_is_its_methods_name(spec):
    method = make_method(spec)
    assert isinstance(method, Method)
    assert method.name == spec
    assert make_method(method.name) == method


@pytest.mark.parametrize(
    ("spec", "error", "sentence"),
    [
        ("fixd:20", UnknownNameError, "unknown method 'fixd'\n  -> did you mean 'fixed'"),
        ("fixed", ConfigError, "method 'fixed' lacks its numbers\n  -> write fixed:STEPS"),
        ("fixed:many", ConfigError, "a method is written 'fixed:STEPS.*', got 'many' after the colon"),
        ("fixed:0", ConfigError, "fixed: .* must be at least 1, got 0"),
        ("random:1.5", ConfigError, r"in \[0, 1\], got 1.5"),
        ("turbo:5", ConfigError, "1 to 4, got 5"),
        ("interval:sag:20", ConfigError, "guides every step or none"),
        ("policy:nowhere@cheap", ConfigError, "price of a policy must be a number"),
        ("policy:nowhere@-1", ConfigError, "price of a policy must be at least 0"),
        ("policy:nowhere", WeightsError, "nowhere"),
    ],
)
def test_what_is_wrong_is_said(spec, error, sentence):
    with pytest.raises(error, match=sentence):
        make_method(spec)


@pytest.mark.parametrize(
    ("spec", "error", "wrong"),
    [  # of sentences above, or of another registry's
        ("fixed:8,trailing,heun", UnknownNameError, "heun"),
        ("stop:-1", ConfigError, "-1"),
        ("prompt_rule:8", ConfigError, "prompt_rule:"),
        ("best_of:3,6", ConfigError, "best_of:"),
        ("threshold_retry:nan", ConfigError, "nan"),
        ("threshold_retry:0.8,8,0", ConfigError, "0"),
        ("oracle_stop:preferense", UnknownNameError, "preferense"),
        ("lcm:0", ConfigError, "0"),
        ("lcm:51", ConfigError, "51"),
        ("sag:4,-1", ConfigError, "-1"),
        ("attend_excite:0", ConfigError, "0"),
        ("fbcache:4", ConfigError, "fbcache:"),
        ("fbcache:4,nan", ConfigError, "nan"),
    ],
)
def test_every_method_refuses_what_it_cannot_do(spec, error, wrong):
    with pytest.raises(error) as caught:
        make_method(spec)
    assert type(caught.value) is error and wrong in caught.value.cause and caught.value.remedy


def test_a_method_of_one_file_needs_only_a_name():
    class Steady(BaseMethod):
        usage = "steady:"
        name = "steady"

    assert Steady().decide([None, None]) == [0, 0]
