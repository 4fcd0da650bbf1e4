"""A small table of attempts, recorded once."""

from dataclasses import replace

import pytest

from addiffusion_env.agents.tabular_training import make_mdp
from addiffusion_env.envs.settings import EnvSettings, load_backbone, load_scorers
from addiffusion_env.prompts.emoji_grammar import EmojiPrompts
from addiffusion_env.tabular.recorder import Recorder

ATTEMPTS = 3
SETTINGS = {
    "backbone": "emoji",
    "steps": 4,
    "early_exit_steps": 1,
    "guidance_interval": [3.0, 9.0],
    "decide_at": [2, 3],
    "check_finished": True,
    "refine": {
        "preset": "resample_keep_best",
        "return_to": 2,
        "limit": ATTEMPTS - 1,
        "utility": {"calibrator": "emoji"},
    },
    "reward": {"preset": "default", "terminal_bonus": {"centre": 0.0, "width": 1.0, "calibrator": "emoji"}},
    "cost_per_nfe": [0.0, 0.03],
    "observation_keys": ["clip", "timestep", "quality", "cost_per_nfe", "tries", "correctness"],
}


@pytest.fixture(scope="session")
def tabular_settings():
    return EnvSettings.of(**SETTINGS)


@pytest.fixture(scope="session")
def images():
    return [(prompt, 5) for prompt in EmojiPrompts(split="train").take(4, seed=3)]


@pytest.fixture(scope="session")
def recorder(tabular_settings):
    backbone = load_backbone(tabular_settings)
    process = tabular_settings.process(backbone.capabilities, backbone.name)
    judge = lambda images, prompts: [float(image.mean()) > 0 for image in images]  # noqa: E731
    scorers = load_scorers(backbone, tabular_settings.scorers)
    return Recorder(backbone, scorers, process, ATTEMPTS, judge, features=True)


@pytest.fixture(scope="session")
def table(recorder, images):
    return recorder.record(images, lanes=1)


@pytest.fixture(scope="session")
def from_start(recorder, images, tabular_settings):
    """The tabular MDP and settings of the same process with ``refine.return_to=0``."""
    return _recorded(replace(tabular_settings, refine={**tabular_settings.refine, "return_to": 0}), recorder, images)


@pytest.fixture(scope="session")
def whole_attempts(recorder, images, tabular_settings):
    """As ``from_start``, without decisions inside the schedule: *continue* runs a whole attempt."""
    refine = {**tabular_settings.refine, "return_to": 0}
    settings = replace(tabular_settings, refine=refine, decide_at=None, decide_every=4)
    return _recorded(settings, recorder, images[:2])


def _recorded(settings, recorder, images):
    process = settings.process(recorder.backbone.capabilities, recorder.backbone.name)
    return make_mdp(replace(recorder, process=process).record(images, lanes=1), settings), settings


@pytest.fixture(scope="session")
def mdp(table, tabular_settings):
    return make_mdp(table, tabular_settings)
