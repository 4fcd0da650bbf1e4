"""Errors, registries, seeding and configuration."""

import inspect
import pathlib
import pickle
import runpy
import sys
from dataclasses import replace

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from addiffusion_env import errors
from addiffusion_env.backbones import BACKBONES
from addiffusion_env.backbones.solvers import SOLVERS
from addiffusion_env.config import check_overrides, compose_config, friendly, renamed, renamed_overrides
from addiffusion_env.engine.process import REFINE_PRESETS
from addiffusion_env.envs.settings import EnvSettings, refine_config
from addiffusion_env.errors import AdDiffusionError, ConfigError, UnknownNameError
from addiffusion_env.prompts import keyed_noise, stable_hash
from addiffusion_env.registry import Registry
from addiffusion_env.rewards import PRESETS, TERMS, TerminalBonus, make_reward
from addiffusion_env.scorers import SCORERS
from addiffusion_env.settings import note_renamed

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


def test_errors_survive_pickling():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AdDiffusionError)]
    assert len(kinds) > 10
    for kind in kinds:
        error = pickle.loads(pickle.dumps(kind("cause", "remedy")))
        assert type(error) is kind
        assert (error.cause, error.remedy, str(error)) == ("cause", "remedy", "cause\n  -> remedy"), kind


def test_the_error_for_an_unknown_name_suggests_the_nearest():
    error = errors.unknown("solver", "ddmi", ["euler", "ddim"])
    assert isinstance(error, UnknownNameError) and isinstance(error, LookupError)
    assert str(error) == "unknown solver 'ddmi'\n  -> did you mean 'ddim'? known: ddim, euler"
    assert errors.unknown("solver", "x", ["euler"]).remedy == "known: euler"
    errors.check_settings("refine has", ["blur"], ["blur", "limit"])
    with pytest.raises(ConfigError) as caught:
        errors.check_settings("refine has", ["limit", "blurr"], ["blur", "limit"])
    assert str(caught.value) == "refine has no setting 'blurr'\n  -> did you mean 'blur'? known: blur, limit"


@pytest.mark.parametrize("registry", [BACKBONES, SCORERS, TERMS, SOLVERS], ids=lambda registry: registry.kind)
def test_every_registered_name_loads(registry):
    for name in registry:
        assert callable(registry.load(name))


def test_a_name_can_be_registered_for_one_target_only():
    registry = Registry("thing", {"a": "json:loads"})
    registry.add("a", "json:loads")  # importlib.reload of a module that registers
    assert dict(registry._entries) == {"a": "json:loads"}
    with pytest.raises(ConfigError, match="thing 'a' is already registered as json:loads"):
        registry.add("a", "json:dumps")
    with pytest.raises(ConfigError, match="not 'module:attribute'"):
        registry.add("b", "json.dumps")


def test_noise_is_a_function_of_prompt_seed_and_stream():
    base = keyed_noise("p", 1, (4, 8, 8))
    assert torch.equal(base, keyed_noise("p", 1, (4, 8, 8)))
    for other in (
        keyed_noise("q", 1, (4, 8, 8)),
        keyed_noise("p", 2, (4, 8, 8)),
        keyed_noise("p", 1, (4, 8, 8), "refine-0"),
    ):
        assert not torch.allclose(base, other)
    assert stable_hash("a", 1) == 4742018630964328543


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env.stepz=3", "no key 'env.stepz'\n  -> did you mean 'env.steps'"),
        ("reward=defalt", "configs/reward has no option 'defalt'\n  -> did you mean 'default'"),
        ("environment@env=AdDiffusion-Emoji-v3", "-> did you mean 'AdDiffusion-Emoji-v2'"),
        ("env.max_decisionz=3", "+env.max_decisionz=VALUE adds what the files leave out"),
        ("ppo.lr=0.1", "no key 'ppo.lr'\n  -> known: ppo.batch_size"),
        ("env.lanes=3", "-> did you mean 'lanes'"),
        ("+env.steps=3", "+env.steps=3 adds a key that is there already\n  -> write env.steps=3"),
        ("tabular={pikture: 3}", "that tabular does not have\n  -> +tabular.NAME=VALUE adds one"),
        ("algorithm_kwargs.most=3", "algorithm_kwargs is null: write 'algorithm_kwargs={most: VALUE}'"),
        ("rollouts.lanes=3", "the key 'rollouts.lanes' no longer exists\n  -> write lanes=VALUE"),
        ("warm_start.decisions=3", "the key 'warm_start' no longer exists\n  -> leave it out"),
        ("+warm_start=null", "the key 'warm_start' no longer exists"),
        ("lanes", "'lanes' has no value\n  -> write lanes=VALUE"),
        ("--run-dir=x", "--run-dir=x is no flag\n  -> write run_dir=VALUE"),
    ],
)
def test_mistyped_overrides_get_the_nearest_name(override, message):
    with pytest.raises(ConfigError) as caught:
        check_overrides(CONFIGS, "train", [override])
    assert message in str(caught.value)


def test_a_plus_that_hydra_accepts_is_not_the_mistake():
    with pytest.raises(ConfigError, match=r"no key 'env\.stepz'"):
        check_overrides(CONFIGS, "train", ["+report.samplers=[fixed:4]", "+tabular={images: 3}", "env.stepz=3"])


def test_former_names_of_keys_are_accepted(capsys):
    note_renamed.cache_clear()
    given = ["replay.tries=3", "replay=null", "~replay.ppo", "+env.max_decisions=3", "lanes=2"]
    now = ["tabular.attempts=3", "tabular=null", "~tabular.ppo", "+env.max_decisions=3", "lanes=2"]
    assert renamed_overrides(given) == now
    assert "note: the key replay is called tabular now" in capsys.readouterr().err
    assert renamed({"replay": None, "tabular": {"attempts": 5}, "lanes": 2}) == {"tabular": None, "lanes": 2}
    assert renamed({"tabular": None}) == {"tabular": None}
    check_overrides(CONFIGS, "train", now[1:2])


def test_the_error_for_an_unknown_key_lists_its_section_only():
    with pytest.raises(ConfigError) as caught:
        check_overrides(CONFIGS, "train", ["ppo.ent_coeff=0.1"])
    assert "did you mean 'ppo.ent_coef'" in str(caught.value) and "env." not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        check_overrides(CONFIGS, "train", ["lanse=8"])
    assert "did you mean 'lanes'" in str(caught.value) and "ppo.ent_coef" not in str(caught.value)


def test_an_interruption_prints_one_line(capsys):
    @friendly
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        interrupted()
    assert left.value.code == 130 and capsys.readouterr().err.startswith("interrupted; the same command goes on")


def test_good_overrides_pass():
    check_overrides(CONFIGS, "train", ["lanes=2", "experiment=smoke", "hydra.run.dir=.", "-m", "seed=1,2"])


def composed(script, *overrides):
    from omegaconf import OmegaConf

    return OmegaConf.to_container(compose_config(CONFIGS, script, overrides))


def test_every_experiment_composes():
    for path in sorted((CONFIGS / "experiment").glob("*.yaml")):
        script = "eval" if path.stem in ("hypotheses", "study", "claims") else "train"
        check_overrides(CONFIGS, script, [f"experiment={path.stem}"])


@pytest.mark.parametrize("path", sorted((CONFIGS / "backbone").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_backbone_has_a_training_configuration(path):
    config = composed("train", f"backbone={path.stem}")
    settings = EnvSettings.of(**config["env"])
    assert settings.backbone == path.stem
    assert settings.cost_range()[0] < settings.cost_range()[1]
    assert config["run_dir"] == f"runs/{path.stem}"


@pytest.mark.parametrize("backbone", [path.stem for path in (CONFIGS / "backbone").glob("*.yaml")])
def test_a_reward_option_sets_the_settings_that_belong_to_it(backbone):
    settings = EnvSettings.of(**composed("train", "reward=as_published", f"backbone={backbone}")["env"])
    refine, published = refine_config(settings.refine), REFINE_PRESETS["as_published"]
    assert replace(refine, first_step=1, utility=published.utility) == published
    assert make_reward(settings.reward).terms["nfe_cost"] == PRESETS["as_published"]["nfe_cost"]
    bonus = make_reward(settings.reward).terms["terminal_bonus"]
    plain = {name: item.default for name, item in inspect.signature(TerminalBonus).parameters.items()}
    assert bonus.weight == 1 and all(plain[name] == value for name, value in bonus.settings.items())
    assert settings.cost_range() == (0.014, 0.014)


def test_a_value_given_beside_a_reward_option_wins():
    given = ["env.cost_per_nfe=0.5", "env.refine.preset=resample_short", "env.refine.limit=1"]
    own = composed("train", "reward=as_published", *given)["env"]
    assert (own["cost_per_nfe"], own["refine"]["preset"], own["refine"]["limit"]) == (0.5, "resample_short", 1)


@pytest.mark.parametrize("path", sorted((CONFIGS / "evaluation").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_evaluation_composes_from_known_names(path):
    from addiffusion_env.evaluation.judges import choose_judges
    from addiffusion_env.samplers import make_sampler

    check_overrides(CONFIGS, "eval", [f"evaluation={path.stem}"])
    config = composed("eval", f"evaluation={path.stem}")
    assert EnvSettings.of(**config["env"]).backbone == path.stem
    assert [make_sampler(spec) for spec in config["samplers"]]
    assert choose_judges(config["judges"], path.stem) == ["hps"]


@pytest.mark.parametrize("script", ["train_sb3.py", "eval_sb3.py"])
def test_the_help_lists_every_group_and_nothing_warns(script, monkeypatch, capsys, recwarn):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(CONFIGS.parent / script), run_name="__main__")
    assert left.value.code in (0, None) and not recwarn
    groups = "backbone: diffusers, emoji, flux, flux2_klein, qwen_image, sd15, sd21, sd35, sdxl, z_image"
    assert groups in capsys.readouterr().out


def test_no_pre_release_of_hydra_is_taken_and_the_release_is():
    tomllib = pytest.importorskip("tomllib", reason="from Python 3.11 on")
    project = tomllib.loads((CONFIGS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (hydra,) = (item for item in map(Requirement, project["dependencies"]) if item.name == "hydra-core")
    wanted = hydra.specifier & SpecifierSet(
        ">=1.1.0.dev7"
    )  # the sweeper's requirement, because of which pip considers pre-releases
    assert wanted.prereleases
    versions = ["1.3.8", "1.4.0.dev10", "1.4.0rc1", "1.4.0rc3", "1.4.0rc4", "1.4.0", "1.4.1"]
    assert list(wanted.filter(versions, prereleases=True)) == ["1.3.8", "1.4.0", "1.4.1"]


def test_every_registered_backbone_has_one():
    assert {path.stem for path in (CONFIGS / "backbone").glob("*.yaml")} == set(BACKBONES)


def test_friendly_prints_two_lines_and_exits(capsys):
    @friendly
    def script():
        raise UnknownNameError("unknown thing 'x'", "use y")

    with pytest.raises(SystemExit) as caught:
        script()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: unknown thing 'x'\n  -> use y\n"
