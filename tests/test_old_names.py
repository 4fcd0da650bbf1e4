"""Names of earlier versions: configurations, policies and records that use them are still read."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from eval_records import record
from safetensors.torch import load_file, save_file

from addiffusion_env import settings
from addiffusion_env.agents.policy_file import PRETRAINED, load_policy
from addiffusion_env.config import renamed, renamed_overrides
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.evaluation.store import RecordStore
from addiffusion_env.samplers import make_sampler
from addiffusion_env.settings import OLD_NAMES, present, present_settings

OLD = {
    "price": [0.0, 0.03],
    "landing_steps": 2,
    "check_finished": True,
    "refine": {"preset": "again", "limit": 4, "liking": {"belief": "emoji"}},
    "reward": {"preset": "default", "nfe_price": 2.0, "terminal_bonus": {"belief": "emoji"}},
    "observation_keys": ["clip", "price", "tries", "belief"],
    "render_mode": "film",
}
PRESENT = {
    "cost_per_nfe": [0.0, 0.03],
    "early_exit_steps": 2,
    "check_finished": True,
    "refine": {"preset": "resample_keep_best", "limit": 4, "utility": {"calibrator": "emoji"}},
    "reward": {"preset": "default", "nfe_cost": 2.0, "terminal_bonus": {"calibrator": "emoji"}},
    "observation_keys": ["clip", "cost_per_nfe", "attempts", "correctness"],
    "render_mode": "filmstrip",
}


def old(kind, name):
    """The name that an earlier version gave."""
    return next((before for before, now in OLD_NAMES[kind].items() if now == name), name)


def test_settings_of_environments():
    assert present_settings(OLD) == PRESENT
    assert EnvSettings.of(**OLD) == EnvSettings.of(**PRESENT)


def test_a_note_is_printed_once(capsys):
    settings.note_renamed.cache_clear()
    for _ in range(2):
        assert present("sampler", "threshold_retry") == "threshold_resample"
    assert capsys.readouterr().err.count("called 'threshold_resample' now") == 1


def test_keys_of_configurations():
    overrides = ["methods=[fixed:8]", "prices=[0.01]", "env.price=0.5", "report.films=false", "replay.pictures=8"]
    assert renamed_overrides(overrides) == [
        "samplers=[fixed:8]",
        "costs_per_nfe=[0.01]",
        "env.cost_per_nfe=0.5",
        "report.filmstrips=false",
        "tabular.images=8",
    ]
    assert renamed({"env": {"landing_steps": 2}, "keep_pictures": True}, note=False) == {
        "env": {"early_exit_steps": 2},
        "keep_images": True,
    }


def test_specifications_of_samplers():
    assert make_sampler("threshold_retry:0.5").name == "threshold_resample:0.5"


def test_a_policy_file(tmp_path):
    """The shipped policy, written as an earlier version wrote it, decides as it does now."""
    folder = tmp_path / "policy"
    folder.mkdir()
    config = json.loads((PRETRAINED / "emoji" / "config.json").read_text(encoding="utf-8"))
    config["environment"] |= {"price": config["environment"].pop("cost_per_nfe")}
    config["environment"]["refine"] = {"preset": "again", "return_to": 0, "limit": 5, "liking": {"belief": "emoji"}}
    config["environment"]["observation_keys"] = ["timestep", "belief", "prior", "spent", "price"]
    config["observation"] = {old("observation key", key): value for key, value in config["observation"].items()}
    config = {old("policy file entry", key): value for key, value in config.items()}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = load_file(PRETRAINED / "emoji" / "policy.safetensors")
    before = {
        ".".join(old("observation key", part) for part in name.split(".")): value for name, value in tensors.items()
    }
    assert set(before) != set(tensors)
    save_file(before, folder / "policy.safetensors")
    (policy, read), (shipped, now) = load_policy(folder), load_policy(PRETRAINED / "emoji")
    assert (read.environment, read.observation) == (now.environment, now.observation)
    rng = np.random.default_rng(0)
    seen = {
        key: torch.tensor(rng.uniform(-1, 1, (4, box.shape[0])), dtype=torch.float32)
        for key, box in now.space().items()
    }
    assert torch.equal(*(one.get_distribution(seen).distribution.probs for one in (policy, shipped)))


@pytest.mark.parametrize("named", [False, True], ids=["present", "old"])
def test_records(tmp_path, named):
    store = RecordStore(tmp_path)
    path = store.write([record("fixed:8", 0)])
    if named:
        table = pq.read_table(path)
        pq.write_table(table.rename_columns([old("column", name) for name in table.column_names]), path)
        assert "method" in pq.read_schema(path).names
    assert [one.sampler for one in store.read()] == ["fixed:8"]
