"""Values accepted as a policy or a model: each works, or raises an error that says what to pass."""

import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import DQN, PPO

from addiffusion_env import AdaptivePipeline, AdDiffusionEnv, AdDiffusionVecEnv
from addiffusion_env.agents import pipeline
from addiffusion_env.agents.hub_policy import named_policy
from addiffusion_env.agents.learned import PolicySampler
from addiffusion_env.agents.make import make_policy
from addiffusion_env.agents.policy import KeyProjection, MaskableAdDiffusionPolicy, action_probabilities
from addiffusion_env.agents.sb3_zip import export_zip
from addiffusion_env.backbones import BACKBONES
from addiffusion_env.backbones.pipelines import backbone_in
from addiffusion_env.errors import AdDiffusionError, ConfigError, UntrustedFileError
from addiffusion_env.evaluation.choices import make_samplers
from addiffusion_lab.tiny_pipelines.backbones import BUILDERS

SHORT = {"n_steps": 4, "batch_size": 8, "n_epochs": 1, "device": "cpu", "seed": 0}
PROCESS = {"steps": 2, "refine": "resample_short", "cost_per_nfe": [0.0, 0.02]}
DOG = ["a photo of a dog"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    BUILDERS["sd15"](folder)
    return folder


@pytest.fixture(scope="module")
def vec_env():
    return AdDiffusionVecEnv(2, **PROCESS)


@pytest.fixture(scope="module")
def maskable(vec_env):
    return MaskablePPO(MaskableAdDiffusionPolicy, vec_env, **SHORT)


@pytest.fixture(scope="module")
def emoji_pipe():
    return AdaptivePipeline.from_pretrained("emoji")


def told(function, *arguments, **keywords):
    with pytest.raises(AdDiffusionError) as caught:
        function(*arguments, **keywords)
    return caught.value


# ---- names and folders


def test_a_backbones_name_wants_a_policy_beside_it():
    error = told(AdaptivePipeline.from_pretrained, "sd15")
    assert isinstance(error, ConfigError) and "'sd15' is a backbone" in error.cause
    assert "AdaptivePipeline.from_pretrained('sd15', policy='fixed:20')" in error.remedy


def test_an_evaluation_is_told_what_its_policy_is_instead():
    assert "backbone=sd15" in told(make_policy, "policy:sd15").remedy
    assert "import_zip" in told(make_policy, "policy:model.zip").remedy
    assert told(make_policy, "policy:emojy").remedy.startswith("did you mean 'emoji'? ")


def test_no_name_is_listed_twice():
    known = told(AdaptivePipeline.from_pretrained, "emojy").remedy.partition("known: ")[2].split(", ")
    assert known == sorted({*BACKBONES, "emoji", "emoji_rule"})


@pytest.mark.filterwarnings("ignore:previews are a linear map")
def test_a_models_folder_works_with_a_policy_and_says_so_without(model_folder):
    assert backbone_in(model_folder) == "diffusers" and backbone_in(model_folder / "unet") is None
    pipe = AdaptivePipeline.from_pretrained(model_folder, policy="fixed:2")
    assert (pipe.backbone.name, pipe("a dog").nfe.tolist()) == ("diffusers", [2.0])
    for error in (told(AdaptivePipeline.from_pretrained, model_folder), told(make_policy, model_folder)):
        assert "diffusers pipeline" in error.cause and "policy='fixed:20'" in error.remedy


def test_windows_paths_are_paths():
    for path in (r"C:\policies\emoji", "C:/policies/emoji", r"policies\emoji"):
        assert told(make_policy, path).cause == f"no such folder: {path}"
    assert told(make_policy, "model.zip").cause == "no such file: model.zip"


# ---- models of Stable-Baselines3


def test_a_zip_works_on_trust(tmp_path, emoji_pipe):
    path = export_zip("emoji", tmp_path / "emoji.zip")
    for arguments in ((path,), ("emoji", path)):
        with pytest.raises(UntrustedFileError, match="trust=True"):
            AdaptivePipeline.from_pretrained(*arguments)
        pipe = AdaptivePipeline.from_pretrained(*arguments, trust=True)
        assert pipe(DOG).actions == emoji_pipe(DOG).actions
    assert "import_zip" in told(named_policy, path).remedy


@pytest.mark.slow
def test_an_evaluation_takes_a_zip_on_trust(tmp_path, monkeypatch):
    import eval_sb3

    path = export_zip("emoji", tmp_path / "mine.zip")
    config = {**eval_sb3.defaults(), "policy": str(path), "costs_per_nfe": [None, 0.01], "samplers": [], "prompts": 1}
    with pytest.raises(UntrustedFileError, match="trust=True"):
        make_samplers(config)
    samplers, settings = make_samplers({**config, "trust": True})
    assert [sampler.name for sampler in samplers] == ["policy:mine@0.03", "policy:mine@0.01"]
    assert samplers[0].fingerprint == samplers[1].fingerprint and len(samplers[0].fingerprint) == 64
    assert settings.keys() == make_policy("emoji").settings().keys()
    monkeypatch.chdir(tmp_path)
    more = {"trust": True, "costs_per_nfe": [None], "samplers": ["fixed:2"], "prompts": 1, "filmstrips": False}
    report = eval_sb3.evaluate({**config, **more, "progress_bar": False})
    assert report.summary.focus == "policy:mine@0.03" and (tmp_path / "runs/eval_mine/summary.json").is_file()


def test_a_zip_that_says_no_environment_is_told_how(tmp_path, maskable):
    maskable.save(tmp_path / "model.zip")
    error = told(AdaptivePipeline.from_pretrained, "emoji", tmp_path / "model.zip", trust=True)
    assert f"import_zip('{tmp_path / 'model.zip'}', {{'backbone': 'emoji', ...}}, trust=True)" in error.remedy


@pytest.mark.parametrize("policy", ["MultiInputPolicy", MaskableAdDiffusionPolicy])
def test_a_model_in_memory_decides_as_it_predicts(policy, vec_env):
    env = AdDiffusionEnv(**PROCESS) if policy == "MultiInputPolicy" else vec_env
    model = (PPO if policy == "MultiInputPolicy" else MaskablePPO)(policy, env, **SHORT)
    pipe = AdaptivePipeline.from_pretrained("emoji", policy=model)
    assert (pipe.process.steps, pipe.process.refine.renoise, pipe.sampler.config.highest_cost_per_nfe) == (2, 1.0, 0.02)
    alone = AdDiffusionEnv(**PROCESS)
    observation, _ = alone.reset(seed=0, options={"prompt": DOG[0], "seed": 0, "cost_per_nfe": 0.01})
    masks = {} if policy == "MultiInputPolicy" else {"action_masks": alone.action_masks()}
    action, _ = model.predict(observation, deterministic=True, **masks)
    assert pipe(DOG, seeds=0).actions[0][0] == int(action)


def test_models_that_belong_to_no_environment_here_are_refused(tmp_path):
    assert isinstance(told(make_policy, PPO("MlpPolicy", "CartPole-v1", device="cpu")), ConfigError)
    PPO("MultiInputPolicy", AdDiffusionEnv(**PROCESS), **SHORT).save(tmp_path / "model.zip")
    with pytest.raises(ConfigError, match=r"\n  -> PPO.load\(path, env=env\)"):
        make_policy(PPO.load(tmp_path / "model.zip"))
    with pytest.raises(ConfigError, match="got int"):
        make_policy(3)


def test_a_model_whose_network_has_no_name_decides_and_is_not_saved(vec_env, tmp_path):
    class Hidden(KeyProjection):
        pass

    model = PPO("MultiInputPolicy", vec_env, **SHORT, policy_kwargs={"features_extractor_class": Hidden})
    pipe = AdaptivePipeline.from_pretrained("emoji", policy=model)
    assert len(pipe(DOG).actions[0]) > 0
    with pytest.raises(ConfigError, match="MultiInputActorCriticPolicy cannot be saved"):
        pipe.save_pretrained(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DQN, RecurrentPPO])
def test_a_value_network_and_one_with_a_memory_are_policies(kind, vec_env, tmp_path):
    """In memory, saved as plain files, and as a zip; however many images are drawn at once."""
    settings = {"buffer_size": 8, "device": "cpu", "seed": 0} if kind is DQN else SHORT
    model = kind("MultiInputPolicy" if kind is DQN else "MultiInputLstmPolicy", vec_env, **settings)
    pipe = AdaptivePipeline.from_pretrained("emoji", policy=model)
    prompts = ["a photo of a dog", "two red cups", "a photo of a cat"]
    wanted = pipe(prompts, return_trace=True)
    for trace, actions in zip(wanted.trace, wanted.actions, strict=True):
        assert [decision.probabilities.argmax() for decision in trace.decisions] == actions
    assert AdaptivePipeline.from_pretrained("emoji", policy=model, max_lanes=1)(prompts).actions == wanted.actions
    pipe.save_pretrained(tmp_path / "policy")
    assert AdaptivePipeline.from_pretrained(tmp_path / "policy")(prompts).actions == wanted.actions
    path = export_zip(tmp_path / "policy", tmp_path / "model.zip")
    assert kind.load(path).num_timesteps == 0
    assert AdaptivePipeline.from_pretrained(path, trust=True)(prompts).actions == wanted.actions
    alone = AdDiffusionEnv(**PROCESS)
    observation, _ = alone.reset(seed=0, options={"prompt": DOG[0], "seed": 0, "cost_per_nfe": 0.01})
    memories, done, taken = [None], False, []
    while not done:
        seen, legal = {key: value[None] for key, value in observation.items()}, alone.action_masks()[None]
        chances, memories = action_probabilities(model.policy, seen, legal, memories)
        taken.append(int(np.where(legal, chances, -1).argmax()))
        observation, _, done, _, _ = alone.step(taken[-1])
    assert pipe(DOG, seeds=0, cost_per_nfe=0.01).actions[0] == taken


def test_a_model_in_memory_is_saved_as_a_policy(maskable, tmp_path):
    AdaptivePipeline.from_pretrained("emoji", policy=maskable).save_pretrained(tmp_path)
    again = AdaptivePipeline.from_pretrained(tmp_path)
    assert again.sampler.settings().steps == 2 and again.sampler.config.provenance["algorithm"] == "MaskablePPO"


# ---- what does not fit, and what was not trained


@pytest.mark.filterwarnings("ignore:previews are a linear map")
def test_a_policy_that_does_not_fit_is_refused_before_anything_is_loaded(model_folder, monkeypatch):
    def loaded(*_):
        raise AssertionError("something was loaded")

    sd = AdaptivePipeline.from_pretrained(model_folder, policy="fixed:2").backbone
    monkeypatch.setattr(pipeline, "load_scorers", loaded)
    errors = [told(AdaptivePipeline, model, "emoji") for model in (sd, sd.pipe)]
    monkeypatch.setattr(pipeline, "load_backbone", loaded)
    errors += [told(AdaptivePipeline.from_pretrained, "emoji", backbone=name) for name in ("sdxl", model_folder)]
    for error, name in zip(errors, ("diffusers", "diffusers", "sdxl", "diffusers"), strict=True):
        assert f"does not fit the {name} backbone: its calibrator reads text embeddings of 128" in error.cause
        assert "here they have 768" in error.cause
        assert error.remedy == "use it on emoji, or here a policy without training: policy='fixed:20'"


def test_an_evaluation_refuses_it_too():
    import eval_sb3

    config = {**eval_sb3.defaults(), "policy": "emoji", "env": {"backbone": "sd15"}}
    assert "does not fit the sd15 backbone" in told(make_samplers, config).cause


@pytest.mark.parametrize(
    ("wanted", "nearest"), [({"target_nfe": 1000}, "2.86"), ({"target_nfe": 1}, "1.58"), ({"cost_per_nfe": 5}, "0.45")]
)
def test_what_was_not_trained_is_warned_of_with_the_nearest_that_was(emoji_pipe, wanted, nearest):
    with pytest.warns(UserWarning, match=f"the nearest is {nearest}$"):
        emoji_pipe(DOG, **wanted)


def test_an_evaluation_warns_of_a_cost_too(recwarn):
    make_policy("policy:emoji@0.03")
    assert not recwarn
    with pytest.warns(UserWarning, match=r"trained at, 0\.002 to 0\.45; the nearest is 0\.45$"):
        sampler = make_policy("policy:emoji@0.5")
    assert isinstance(sampler, PolicySampler) and sampler.cost_per_nfe == 0.5


@pytest.mark.parametrize("seed", [torch.tensor(3), np.array(3), np.int64(3)])
def test_one_seed_of_any_library_is_a_number(emoji_pipe, seed):
    wanted = emoji_pipe(DOG * 2, seeds=3, output_type="np").images
    np.testing.assert_array_equal(emoji_pipe(DOG * 2, seeds=seed, output_type="np").images, wanted)


def test_a_seed_that_is_no_whole_number_is_refused(emoji_pipe):
    assert "whole number, got Tensor" in told(emoji_pipe, DOG, seeds=torch.tensor(3.5)).cause
