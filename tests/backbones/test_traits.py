"""A backbone's class defines its traits: prompts, reader, scorers, judges and guide."""

import sys

import gymnasium as gym
import pytest

from addiffusion_env import AdaptivePipeline
from addiffusion_env.backbones import BACKBONES, Traits, traits_of
from addiffusion_env.catalogue import catalogue
from addiffusion_env.envs.settings import EnvSettings, clip_width, load_backbone, load_scorers
from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.choices import choose_prompts, with_defaults
from addiffusion_env.evaluation.judges import choose_judges
from addiffusion_env.prompts import PROMPT_SOURCES
from addiffusion_env.scorers import SCORERS
from addiffusion_lab.demo.prompts import guide_of, read_prompt

MODULE = """
from addiffusion_env.backbones.emoji import EmojiBackbone
from addiffusion_env.backbones import Traits
from addiffusion_env.scorers.emoji import EmojiScorers
from addiffusion_env.errors import ConfigError
from addiffusion_env.prompts import Prompt, PromptList

def source(kind="shout"):
    return PromptList([reader(f"a {kind} {n}") for n in range(3)])

def reader(text):
    return Prompt(text.upper(), f"toy-{text}")

class Scorers(EmojiScorers):
    @staticmethod
    def check(paths):
        if set(paths) - {"bell"}:
            raise ConfigError("the toy world has a bell alone", "scorers={bell: FOLDER}")
        return paths

    @staticmethod
    def clip_width(paths):
        return 7

class Judge:
    name, world = "toy_judge", "toys"
    @classmethod
    def from_pretrained(cls, **options):
        return cls()
    @classmethod
    def needs(cls):
        return ""
    def verdicts(self, images, prompts):
        return []

class Guide:
    examples = ("a whisper",)
    def advice(self, prompt):
        return f"you said {prompt.text}"
    def vocabulary(self):
        return "<b>toys</b>"

class ToyBackbone(EmojiBackbone):
    \"\"\"A second small world.\"\"\"
    name = "toy"
    traits = Traits(prompts="toy_prompts", test_options={"kind": "test"}, prompt_reader="toy_world:reader",
        scorers="toy_world:Scorers", preference="blip_preference", judges=("toy_judge",), world="toys", embedded=True,
        guide="toy_world:Guide")
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "toy_world.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    added = (
        (BACKBONES, "toy", "ToyBackbone"),
        (PROMPT_SOURCES, "toy_prompts", "source"),
        (SCORERS, "toy_judge", "Judge"),
    )
    for registry, name, attribute in added:
        registry.add(name, f"toy_world:{attribute}")
    yield "toy"
    for registry, name, _ in added:
        del registry._entries[name]
    sys.modules.pop("toy_world", None)


def test_environments_take_prompts_reader_and_scorers(toy):
    env = gym.make("AdDiffusion-Emoji-v2", backbone=toy, prompt_options={"kind": "long"})
    _, info = env.reset(seed=0)
    assert info["prompt"].startswith("A LONG ")
    _, info = env.reset(seed=0, options={"prompt": "a dog"})
    assert (info["prompt"], info["prompt_id"]) == ("A DOG", "toy-a dog")
    with pytest.raises(ConfigError, match="a bell alone"):
        EnvSettings(backbone=toy, scorers={"clip": "x"})
    settings = EnvSettings(backbone=toy, scorers={"bell": "x"})
    with pytest.raises(ConfigError, match="a bell alone"):
        load_scorers(load_backbone(settings), {"drum": "x"})
    assert clip_width(toy) == 7


def test_evaluations_take_prompts_judges_and_world(toy):
    config = {"benchmark": None, "prompt_source": None, "prompt_options": None, "judges": None}
    assert choose_prompts(config, toy) == ("toy_prompts", {"kind": "test"})
    found = with_defaults(config, toy)
    assert (found["prompt_source"], found["judges"]) == ("toy_prompts", ["toy_judge"])
    benchmark = {**config, "benchmark": "geneval", "benchmark_path": None, "benchmark_options": None}
    assert choose_prompts(benchmark, toy)[1]["world"] == "toys"
    for judge, backbone in (("emoji_detector", toy), ("toy_judge", "emoji"), ("emoji_detector", "sd15")):
        with pytest.raises(ConfigError, match=f"judge '{judge}' supports images of the .* and cannot judge those of"):
            choose_judges([judge], backbone)
    assert choose_judges(["hps"], toy) == ["hps"]


def test_pipelines_and_the_demo_read_prompts_in_their_way(toy):
    pipe = AdaptivePipeline.from_pretrained(toy, policy="fixed:1", device="cpu")
    assert pipe.backbone.traits.read_prompt("a dog").prompt_id == "toy-a dog"
    [image] = pipe(["a dog"]).images
    assert image.size == (64, 64)
    guide = guide_of(traits_of(toy))
    assert guide.advice(read_prompt("a dog", traits_of(toy))) == "you said A DOG"
    assert (guide.examples, guide.vocabulary()) == (("a whisper",), "<b>toys</b>")


def test_the_catalogue_lists_it(toy):
    (entry,) = (entry for entry in catalogue()["backbones"] if entry.name == "toy")
    assert entry.says == "A second small world" and not entry.needs


def test_models_from_the_hub_have_the_plain_traits():
    assert traits_of("sd15") == traits_of("diffusers") == Traits()
    assert choose_judges(None, "sd15") == ["hps"]
    assert guide_of(Traits()).vocabulary() == ""
