"""The lab registers names when it is imported; the library runs without it and loads little."""

import json
import subprocess
import sys

import pytest

from addiffusion_env.errors import UnknownNameError
from addiffusion_env.evaluation.eval_config import extras_in
from addiffusion_env.evaluation.extras import EXTRAS, Extra
from addiffusion_env.registry import Registry


def loaded(code):
    """Names of modules that a new process has imported after running ``code``."""
    code += "\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_local_training_loads_no_ray():
    settings = "{'backbone': 'emoji', 'steps': 2}"
    names = loaded(
        "from addiffusion_env.agents.factory import make_rollouts\n"
        f"make_rollouts({{'kind': 'local'}}, 1, 0, {settings})\n"
        "import addiffusion_env.agents.training, addiffusion_env.agents.tabular_training"
    )
    assert not [name for name in names if name.split(".")[0] == "ray"]
    assert not {"addiffusion_env.distributed.actor_pool", "addiffusion_env.distributed.ray_vec_env"} & set(names)


def test_without_the_lab_an_error_says_where_names_come_from():
    code = """
from addiffusion_env.samplers import make_sampler
from addiffusion_env.errors import UnknownNameError
try:
    make_sampler("lcm:4")
except UnknownNameError as error:
    print(error)
import addiffusion_lab
try:
    make_sampler("lmc:4")
except UnknownNameError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    before, after = done.stdout.split("unknown sampler 'lmc'")
    assert "`import addiffusion_lab` or plugins=[addiffusion_lab] adds more names" in before
    assert "did you mean 'lcm'" in after and "adds more names" not in after


def test_a_setting_of_no_extra_is_refused(monkeypatch):
    class Notes(Extra):
        """Counts."""

        takes = list

    monkeypatch.setitem(EXTRAS._entries, "notes", f"{__name__}:unused")
    monkeypatch.setattr(Registry, "load", lambda self, name: Notes)
    assert extras_in({"notes": ["a"], "hypotheses": None, "seeds": [0]}) == {"notes": Notes}
    with pytest.raises(UnknownNameError, match=r"unknown setting of an evaluation 'hypothesis'\n.*'hypotheses'"):
        extras_in({"hypothesis": {}})
