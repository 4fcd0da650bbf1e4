"""Errors, registries, seeding and configuration."""

import pathlib
import pickle

import pytest
import torch

from addiffusion_env import errors
from addiffusion_env.backbones import BACKBONES
from addiffusion_env.backbones.solvers import SOLVERS
from addiffusion_env.config import check_overrides, friendly
from addiffusion_env.errors import AdDiffusionError, ConfigError, UnknownNameError
from addiffusion_env.registry import Registry
from addiffusion_env.rewards import TERMS
from addiffusion_env.scorers import SCORERS
from addiffusion_env.seeding import keyed_noise, stable_hash

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize("name", [name for name, kind in vars(errors).items() if isinstance(kind, type)])
def test_errors_survive_pickling(name):
    kind = getattr(errors, name)
    if not issubclass(kind, AdDiffusionError):
        pytest.skip("not an error")
    error = pickle.loads(pickle.dumps(kind("cause", "remedy")))
    assert type(error) is kind
    assert (error.cause, error.remedy, str(error)) == ("cause", "remedy", "cause\n  -> remedy")


@pytest.mark.parametrize("registry", [BACKBONES, SCORERS, TERMS, SOLVERS], ids=lambda registry: registry.kind)
def test_every_registered_name_loads(registry):
    for name in registry:
        assert callable(registry.load(name))


def test_a_name_is_registered_once():
    registry = Registry("thing", {"a": "json:loads"})
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
        ("lane=3", "no key 'lane'\n  -> did you mean 'lanes'"),
        ("reward=defalt", "configs/reward has no option 'defalt'\n  -> did you mean 'default'"),
        ("backbone=emojy", "configs/backbone has no option 'emojy'\n  -> did you mean 'emoji'"),
        ("experiment=smok", "configs/experiment has no option 'smok'\n  -> did you mean 'smoke'"),
        ("env.max_decisionz=3", "+env.max_decisionz=VALUE adds what the files leave out"),
        ("replay={pikture: 3}", "that replay does not have\n  -> +replay.NAME=VALUE adds one"),
        ("warm_start.decisions=3", "warm_start is null: write 'warm_start={decisions: VALUE}'"),
        ("lanes", "'lanes' has no value\n  -> write lanes=VALUE"),
        ("--lanes", "--lanes is no flag\n  -> write lanes=VALUE"),
        ("--run-dir=x", "--run-dir=x is no flag\n  -> write run_dir=VALUE"),
    ],
)
def test_mistyped_overrides_get_the_nearest_name(override, message):
    with pytest.raises(ConfigError) as caught:
        check_overrides(CONFIGS, "train", [override])
    assert message in str(caught.value)


def test_a_mistyped_key_is_shown_its_neighbours_only():
    with pytest.raises(ConfigError) as caught:
        check_overrides(CONFIGS, "train", ["ppo.ent_coeff=0.1"])
    assert "did you mean 'ppo.ent_coef'" in str(caught.value) and "env." not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        check_overrides(CONFIGS, "train", ["lanse=8"])
    assert "did you mean 'lanes'" in str(caught.value) and "ppo.ent_coef" not in str(caught.value)


def test_an_interruption_is_a_line(capsys):
    @friendly
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        interrupted()
    assert left.value.code == 130 and capsys.readouterr().err.startswith("interrupted; the same command goes on")


def test_good_overrides_pass():
    check_overrides(CONFIGS, "train", ["lanes=2", "experiment=smoke", "hydra.run.dir=.", "-m", "seed=1,2"])


def test_every_experiment_composes():
    for path in sorted((CONFIGS / "experiment").glob("*.yaml")):
        script = "eval" if path.stem == "hypotheses" else "train"
        check_overrides(CONFIGS, script, [f"experiment={path.stem}"])


@pytest.mark.parametrize("path", sorted((CONFIGS / "backbone").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_backbone_has_a_training_configuration(path):
    from hydra import compose, initialize_config_dir

    from addiffusion_env.envs.settings import EnvSettings

    with initialize_config_dir(str(CONFIGS.resolve()), version_base="1.3"):
        config = compose("train", overrides=[f"backbone={path.stem}"])
    settings = EnvSettings.of(**{str(key): value for key, value in config.env.items()})
    assert settings.backbone == path.stem
    assert settings.price_range()[0] < settings.price_range()[1]
    assert config.run_dir == f"runs/{path.stem}"


@pytest.mark.parametrize("path", sorted((CONFIGS / "evaluation").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_evaluation_composes_from_known_names(path):
    from hydra import compose, initialize_config_dir

    from addiffusion_env.baselines import make_method
    from addiffusion_env.envs.settings import EnvSettings

    check_overrides(CONFIGS, "eval", [f"evaluation={path.stem}"])
    with initialize_config_dir(str(CONFIGS.resolve()), version_base="1.3"):
        config = compose("eval", overrides=[f"evaluation={path.stem}"])
    assert EnvSettings.of(**config.env).backbone == path.stem
    assert [make_method(spec) for spec in config.methods]
    assert all(judge in SCORERS for judge in config.judges)


def test_every_registered_backbone_has_one():
    assert {path.stem for path in (CONFIGS / "backbone").glob("*.yaml")} == set(BACKBONES)


def test_friendly_prints_two_lines_and_leaves(capsys):
    @friendly
    def script():
        raise UnknownNameError("unknown thing 'x'", "use y")

    with pytest.raises(SystemExit) as caught:
        script()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: unknown thing 'x'\n  -> use y\n"
