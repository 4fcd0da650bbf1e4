"""Plugins: imported by name, recorded by a run, never imported because of a file alone."""

import json
import shutil
import sys

import pytest

from addiffusion_env import plugins
from addiffusion_env.__main__ import main
from addiffusion_env.agents.policy_file import PRETRAINED, load_config
from addiffusion_env.errors import ConfigError
from addiffusion_env.plugins import load_plugins, loaded_plugins, recorded_plugins, with_plugins
from addiffusion_env.rewards import TERMS


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory that is not on the path yet; its modules are removed afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    monkeypatch.setattr(TERMS, "_entries", dict(TERMS.items()))
    monkeypatch.setattr(plugins, "_loaded", dict(plugins._loaded))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_module_of_the_working_directory_is_imported(here):
    (here / "plugin_of_mine.py").write_text("imported = 1\n")
    load_plugins(["plugin_of_mine"])
    assert sys.modules["plugin_of_mine"].imported == 1 and "plugin_of_mine" in loaded_plugins()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["plugin_of_mime"], "No module named 'plugin_of_mime'\n  -> did you mean 'plugin_of_mine'?"),
        (["broken_plugin"], "plugins: 'broken_plugin' cannot be imported: ZeroDivisionError"),
        (["needy_plugin"], "No module named 'not_installed'\n  -> correct the module, or install what it imports"),
        ("plugin_of_mine", r"plugins must be a list of modules, got 'plugin_of_mine'"),
        ([3], r"plugins must be a list of modules, got \[3\]"),
    ],
)
def test_a_module_that_cannot_be_imported_is_an_error_with_its_cause(here, names, words):
    (here / "plugin_of_mine.py").write_text("")
    (here / "broken_plugin.py").write_text("1 / 0\n")
    (here / "needy_plugin.py").write_text("import not_installed\n")
    with pytest.raises(ConfigError, match=words):
        load_plugins(names)


@pytest.mark.parametrize("flag", ["--plugins", "--package"])
def test_the_command_line_takes_them(here, flag, capsys):
    term = "from addiffusion_env.rewards import NfeCost\n\nclass Fee(NfeCost):\n    '''A fee of mine.'''\n"
    name = f"fee_{flag.strip('-')}"
    register = f"from addiffusion_env.rewards import TERMS\nTERMS.add({name!r}, 'terms_{name}:Fee')\n"
    (here / f"terms_{name}.py").write_text(term + register)
    main(["check", name, flag, f"terms_{name}"])
    assert f"reward term {name}" in capsys.readouterr().out


def test_a_policy_is_loaded_with_the_plugins_of_its_run_and_names_missing_ones(here):
    (here / "plugin_of_a_run.py").write_text("")
    run = here / "run"
    shutil.copytree(PRETRAINED / "emoji", run / "policy")
    settings = json.loads((run / "policy/config.json").read_text())
    (run / "policy/config.json").write_text(json.dumps({**settings, "plugins": ["plugin_of_a_run"]}))
    shutil.copytree(run / "policy", here / "downloaded")
    with pytest.raises(ConfigError, match=r"not imported: plugin_of_a_run\n  -> .* pass plugins=\[plugin_of_a_run\]"):
        load_config(here / "downloaded")
    assert "plugin_of_a_run" not in sys.modules
    (run / "config.json").write_text(json.dumps({"plugins": ["plugin_of_a_run"]}))
    assert with_plugins({"plugins": []}, [run, None, here / "no_run"]) == {"plugins": ["plugin_of_a_run"]}
    del sys.modules["plugin_of_a_run"]
    assert load_config(run / "policy").plugins == ["plugin_of_a_run"]  # imported by the run's folder
    assert load_config(here / "downloaded").plugins == ["plugin_of_a_run"]
    shutil.move(here / "plugin_of_a_run.py", here / "renamed.py")
    del sys.modules["plugin_of_a_run"]
    with pytest.raises(ConfigError, match=f"plugins of the run {run}: 'plugin_of_a_run' cannot be imported"):
        load_config(run / "policy")


def test_a_folder_without_a_training_has_none(tmp_path):
    assert recorded_plugins(tmp_path) == ()
    for text in ("[]", "{", '{"plugins": 3}'):
        (tmp_path / "config.json").write_text(text)
        assert recorded_plugins(tmp_path) == ()
