"""What holds for every registered sampler, on the emoji world or, where it needs another model, on a tiny one."""

from __future__ import annotations

import pytest

from addiffusion_env.checks.methods import SAMPLER_CONTRACTS, SamplerCase
from addiffusion_env.errors import CapabilityError, WeightsError
from addiffusion_env.samplers import SAMPLERS, make_sampler


@pytest.fixture(scope="module", params=sorted(SAMPLERS))
def case(request, on, weights, scorers):
    """A registered sampler with the model that it can run on."""
    backbone, spec = SAMPLERS.load(request.param).example
    assert spec, f"{request.param} needs an example"
    if "FOLDER" in spec:
        spec = spec.replace("FOLDER", str(weights(request.param)[0]))
    return SamplerCase(spec, on(backbone), scorers)


@pytest.mark.parametrize("contract", SAMPLER_CONTRACTS, ids=lambda contract: contract.__name__)
def test_a_sampler_keeps_its_promises(contract, case):
    contract(case)


def test_usage_begins_with_the_registered_name():
    for name in SAMPLERS:
        assert SAMPLERS.load(name).usage.split(":")[0] == name


@pytest.mark.parametrize(
    ("spec", "backbone", "error", "words"),
    [
        ("lcm:4", "emoji", CapabilityError, "backbone=sd15"),
        ("lcm:4", "sd15", WeightsError, "hf download SimianLuo/LCM_Dreamshaper_v7"),
        ("lcm:4,SD15", "sd15", WeightsError, "lcm needs consistency-distilled weights"),
        ("turbo:1", "sd15", CapabilityError, "backbone=sdxl"),
        ("turbo:1", "sdxl", WeightsError, "hf download stabilityai/sdxl-turbo"),
        ("turbo:1,SDXL", "sdxl", WeightsError, "not distilled"),
        ("sag:4", "sdxl", CapabilityError, "Stable Diffusion 1.x and 2.x"),
        ("attend_excite:4", "flux", CapabilityError, "Stable Diffusion 1.x and 2.x"),
        ("fbcache:4,0.1", "emoji", CapabilityError, "DeepCache is not part of it"),
    ],
)
def test_what_it_lacks_is_said_before_anything_is_made(spec, backbone, error, words, on, weights, scorers):
    for name in ("SDXL", "SD15"):
        if spec.endswith(f",{name}"):
            spec = spec.replace(name, str(weights(name.lower())[0]))
    with pytest.raises(error, match=words):
        make_sampler(spec).bind(on(backbone), scorers)
