"""Specifications of samplers: read, named, refused."""

import pytest

from addiffusion_env.errors import ConfigError, UnknownNameError, WeightsError
from addiffusion_env.samplers import make_sampler
from addiffusion_env.samplers.base import BaseSampler, Sampler

SPECS = (
    "fixed:20",
    "fixed:50,leading",
    "fixed:10,trailing,dpmpp_2m",
    "stop:6",
    "random:0.1",
    "prompt_rule:8,6",
    "best_of:3x6",
    "threshold_resample:0.8",
    "threshold_resample:-0.5,6,3",
    "fixed:10,trailing,unipc",
    "interval:fixed:6",
    "interval:threshold_resample:0.4,6,4",
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
def test_a_specification_is_its_samplers_name(spec):
    sampler = make_sampler(spec)
    assert isinstance(sampler, Sampler)
    assert sampler.name == spec
    assert make_sampler(sampler.name) == sampler


@pytest.mark.parametrize(
    ("spec", "error", "sentence"),
    [
        ("fixd:20", UnknownNameError, "unknown sampler 'fixd'\n  -> did you mean 'fixed'"),
        ("fixed", ConfigError, "sampler 'fixed' lacks its numbers\n  -> write fixed:STEPS"),
        ("fixed:many", ConfigError, "a sampler is written 'fixed:STEPS.*', got 'many' after the colon"),
        ("fixed:0", ConfigError, "fixed: .* must be at least 1, got 0"),
        ("random:1.5", ConfigError, r"in \[0, 1\], got 1.5"),
        ("turbo:5", ConfigError, "1 to 4, got 5"),
        ("interval:sag:20", ConfigError, "guides every step or none"),
        ("policy:nowhere@cheap", ConfigError, "cost per NFE of a policy must be a number of at least 0, got 'cheap'"),
        ("policy:nowhere@-1", ConfigError, "cost per NFE of a policy must be a number of at least 0, got '-1'"),
        ("policy:nowhere", WeightsError, "nowhere"),
    ],
)
def test_what_is_wrong_is_said(spec, error, sentence):
    with pytest.raises(error, match=sentence):
        make_sampler(spec)


@pytest.mark.parametrize(
    ("spec", "error", "wrong"),
    [  # of sentences above, or of another registry's
        ("fixed:8,trailing,heun", UnknownNameError, "heun"),
        ("stop:-1", ConfigError, "-1"),
        ("prompt_rule:8", ConfigError, "prompt_rule:"),
        ("best_of:3,6", ConfigError, "best_of:"),
        ("threshold_resample:nan", ConfigError, "nan"),
        ("threshold_resample:0.8,8,0", ConfigError, "0"),
        ("oracle_stop:preferense", UnknownNameError, "preferense"),
        ("lcm:0", ConfigError, "0"),
        ("lcm:51", ConfigError, "51"),
        ("sag:4,-1", ConfigError, "-1"),
        ("attend_excite:0", ConfigError, "0"),
        ("fbcache:4", ConfigError, "fbcache:"),
        ("fbcache:4,nan", ConfigError, "nan"),
    ],
)
def test_every_sampler_refuses_what_it_cannot_do(spec, error, wrong):
    with pytest.raises(error) as caught:
        make_sampler(spec)
    assert type(caught.value) is error and wrong in caught.value.cause and caught.value.remedy


def test_a_sampler_of_one_file_needs_only_a_name():
    class Steady(BaseSampler):
        usage = "steady:"
        name = "steady"

    assert Steady().decide([None, None]) == [0, 0]
