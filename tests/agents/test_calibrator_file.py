"""A calibrator that a run fitted travels with its policy: into another folder, into a zip, and back."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from addiffusion_env.agents.calibrator_file import CALIBRATOR_FILE, copied, located, named_calibrators
from addiffusion_env.agents.make import make_policy
from addiffusion_env.agents.policy_file import PRETRAINED, load_config, load_policy, save_policy
from addiffusion_env.agents.sb3_zip import export_zip, import_zip
from addiffusion_env.errors import ConfigError, WeightsError
from addiffusion_env.scorers.utility import CALIBRATORS, Calibrator, calibrator_of

EMOJI = PRETRAINED / "emoji"


def settings(path):
    network, config = load_policy(EMOJI)
    reward = {"preset": "default", "terminal_bonus": {"calibrator": str(path)}}
    refine = {"preset": "resample_keep_best", "limit": 4, "utility": {"calibrator": str(path)}}
    environment = {**config.environment, "refine": refine, "reward": reward}
    return network, type(config)(**{**config.__dict__, "environment": environment})


@pytest.fixture
def saved(tmp_path):
    """A policy whose calibrator was a file of its run, which is gone."""
    fitted = tmp_path / "run" / "fitted.safetensors"
    fitted.parent.mkdir()
    whole = Calibrator.load(CALIBRATORS / "emoji.safetensors")
    Calibrator(whole.centre, whole.basis, whole.prior * 2, whole.means, whole.precisions).save(fitted)
    save_policy(tmp_path / "policy", *settings(fitted))
    fitted.unlink()
    return tmp_path / "policy"


def prior(environment):
    (name,) = named_calibrators(environment)
    return calibrator_of(name).prior


def test_it_moves_with_the_policy(saved, tmp_path):
    expected = 2 * calibrator_of("emoji").prior
    assert (
        CALIBRATOR_FILE in (saved / "config.json").read_text()
        and str(tmp_path) not in (saved / "config.json").read_text()
    )
    saved.rename(tmp_path / "moved")
    make_policy(tmp_path / "moved").save_pretrained(tmp_path / "again")
    make_policy(tmp_path / "again").save_pretrained(tmp_path / "again")  # onto itself
    for folder in (tmp_path / "moved", tmp_path / "again"):
        np.testing.assert_array_equal(prior(load_config(folder).environment), expected)
        assert Path(named_calibrators(load_config(folder).environment)[0]) == folder / CALIBRATOR_FILE


def test_it_is_in_the_zip(saved, tmp_path):
    expected = load_file(saved / CALIBRATOR_FILE)["prior"]
    path = export_zip(saved, tmp_path / "policy.zip")
    for one in saved.iterdir():
        one.unlink()
    np.testing.assert_array_equal(prior(import_zip(path, trust=True).config.environment), expected)


def test_a_shipped_one_is_named_and_not_copied(tmp_path):
    save_policy(tmp_path, *load_policy(EMOJI))
    assert not (tmp_path / CALIBRATOR_FILE).exists()
    assert named_calibrators(load_config(tmp_path).environment) == ("emoji",)


def test_a_missing_file_and_two_files_are_refused(tmp_path):
    one, other = ({"refine": {"utility": {"calibrator": str(tmp_path / name)}}} for name in ("a.safetensors", "b"))
    with pytest.raises(WeightsError, match="no calibrator in"):
        copied(one, tmp_path)
    with pytest.raises(WeightsError, match="no calibrator in"):
        save_policy(tmp_path / "policy", *settings(tmp_path / "a.safetensors"))
    both = {**one, "reward": {"terminal_bonus": {"calibrator": "other.safetensors"}}}
    with pytest.raises(ConfigError, match=r"names .*a\.safetensors and other\.safetensors"):
        copied(both, tmp_path)
    assert located(other, tmp_path) == other
