"""Every backbone fulfils its contract and every registered id passes the checkers, on tiny models of real classes."""

import gymnasium as gym
import pytest

from addiffusion_env import ENVIRONMENTS
from addiffusion_env.backbones import BACKBONES
from addiffusion_env.checks.backbones import BACKBONE_CONTRACTS
from addiffusion_env.checks.base import hold
from addiffusion_env.checks.environments import ENVIRONMENT_CONTRACTS, an_episode_belongs_to_its_seed

HUB = {name: settings for name, settings in ENVIRONMENTS.items() if settings["backbone"] != "emoji"}
WHOLE = ("AdDiffusion-SD15-v0", "AdDiffusion-FluxSchnell-v0", "AdDiffusion-Diffusers-v0")
"""A UNet, a transformer and any pipeline run Gymnasium's and SB3's checkers in `make test`: the environment is one."""


def hub_environment(name, tiny, scorer_paths):
    model = tiny(HUB[name]["backbone"])
    return gym.make(
        name,
        name_or_path=str(model.folder),
        device="cpu",
        backbone_options=model.options(),
        scorers=scorer_paths,
        prompts=["a photo of a red cup and a dog", "a dog left of a cup"],
        steps=2,
    ).unwrapped


@pytest.mark.parametrize(
    "name", [name if name in WHOLE else pytest.param(name, marks=pytest.mark.slow) for name in HUB]
)
def test_an_environment_fulfils_its_contract(name, tiny, scorer_paths):
    assert len(hold(ENVIRONMENT_CONTRACTS, hub_environment(name, tiny, scorer_paths))) == 3


@pytest.mark.parametrize("name", [name for name in HUB if name not in WHOLE])
def test_an_episode_of_an_id_belongs_to_its_seed(name, tiny, scorer_paths):
    an_episode_belongs_to_its_seed(hub_environment(name, tiny, scorer_paths))


@pytest.fixture(scope="module")
def loaded(emoji, tiny):
    made = {}

    def get(name):
        if name not in made:
            made[name] = emoji if name == "emoji" else tiny(name).load()
        return made[name]

    return get


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("contract", BACKBONE_CONTRACTS, ids=lambda contract: contract.__name__)
def test_a_backbone_fulfils_its_contract(contract, name, loaded):
    contract(loaded(name))
