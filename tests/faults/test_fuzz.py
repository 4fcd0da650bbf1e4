"""Fuzzing of configuration and files: the result is a value or one of this package's errors.

``ADDIFFUSION_FUZZ`` is the number of examples per test (25); above 100 they are different in every run.
"""

from __future__ import annotations

import json
import os
import warnings
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from addiffusion_env.agents.policy_file import load_config
from addiffusion_env.agents.tabular_training import TabularConfig
from addiffusion_env.config import check_overrides
from addiffusion_env.engine.lanes import lanes_of
from addiffusion_env.engine.process import REFINE_PRESETS, ProcessConfig, RefineConfig
from addiffusion_env.envs.settings import EnvSettings, refine_config
from addiffusion_env.errors import AdDiffusionError, ConfigError
from addiffusion_env.evaluation.manifest import MANIFEST_FILE, read_manifest
from addiffusion_env.evaluation.records import SCHEMA, Record, to_table
from addiffusion_env.evaluation.store import RecordStore
from addiffusion_env.prompts import Prompt, TextFilePrompts
from addiffusion_env.rewards import PRESETS, make_reward
from addiffusion_env.samplers import SAMPLERS, make_sampler

ROOT = Path(__file__).parents[2]
EXAMPLES = int(os.environ.get("ADDIFFUSION_FUZZ", "25"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

texts = st.one_of(st.text(max_size=40), st.sampled_from(["auto", "schedule", "nan", "-1", "../x", "\x00", "a" * 5000]))
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-2, 40), st.floats(), texts, st.binary(max_size=4)
)
odd = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)


def answers(function: Any, *args: Any, **kwargs: Any) -> Any:
    """The value, or ``None`` after one of this package's errors; any other error fails the test."""
    try:
        return function(*args, **kwargs)
    except AdDiffusionError:
        return None


def some(kind: type, *more: str) -> st.SearchStrategy[dict[str, Any]]:
    """Keyword arguments of a dataclass with unusual values, and sometimes a misspelt name."""
    names = [item.name for item in fields(kind)] + list(more) + ["stepz"]
    return st.dictionaries(st.sampled_from(names), odd, max_size=3)


@fuzz
@given(some(EnvSettings))
def test_environment_settings(given_: dict[str, Any]) -> None:
    found = answers(EnvSettings.of, **given_)
    if found is not None:
        answers(found.keys)
        answers(found.cost_range)


@fuzz
@given(some(RefineConfig, "preset"), st.sampled_from([*REFINE_PRESETS, None]))
def test_refinement(given_: dict[str, Any], preset: str | None) -> None:
    answers(refine_config, given_ if preset is None else {"preset": preset, **given_})


@fuzz
@given(some(ProcessConfig))
def test_processes(given_: dict[str, Any]) -> None:
    given_.pop("stepz", None)  # unlike EnvSettings it is not built from configuration keys
    answers(ProcessConfig, **given_)


@fuzz
@given(some(TabularConfig))
def test_tabular_training(given_: dict[str, Any]) -> None:
    answers(TabularConfig.of, given_)


@fuzz
@given(odd)
def test_lanes(given_: Any) -> None:
    answers(lanes_of, given_)


names = st.sampled_from([*next(iter(PRESETS.values())), "preset", "terminal_bonos"])


@fuzz
@given(st.one_of(odd, st.dictionaries(names, st.one_of(odd, st.dictionaries(texts, odd, max_size=2)), max_size=3)))
def test_rewards(given_: Any) -> None:
    answers(make_reward, given_)


@fuzz
@given(st.one_of(texts, st.tuples(st.sampled_from(sorted(SAMPLERS)), texts).map(":".join)))
def test_sampler_specifications(spec: str) -> None:
    answers(make_sampler, spec)


@pytest.mark.parametrize("override", ["backbone=nan", "backbone=" + "a" * 5000, "experiment=\x00"])
def test_overrides_that_fuzzing_found(override: str) -> None:
    with pytest.raises(ConfigError):
        check_overrides(ROOT / "configs", "train", [override])


def test_a_name_that_no_file_can_have_is_no_policy() -> None:
    with pytest.raises(AdDiffusionError, match=r"no policy in a{300} \.\.\.: there is no such folder"):
        make_sampler("policy:" + "a" * 5000)


def test_a_sampler_within_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than once"):
        make_sampler("interval:" * 5000 + "fixed:4")


KEYS = ["lanes", "env.steps", "env", "ppo", "backbone", "experiment", "hydra.run.dir", "+new", "~env", "lnaes"]


@settings(fuzz, max_examples=max(20, EXAMPLES // 5))
@given(st.lists(st.one_of(texts, st.tuples(st.sampled_from(KEYS), texts).map("=".join)), max_size=2))
def test_overrides(overrides: list[str]) -> None:
    answers(check_overrides, ROOT / "configs", "train", overrides)


@fuzz
@given(
    st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
)
def test_prompt_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    found = answers(TextFilePrompts, path)
    if found is not None:
        assert all(prompt.text == prompt.text.strip() != "" for prompt in found)
        assert len({prompt.prompt_id for prompt in found}) == len(found)


@fuzz
@given(st.one_of(odd, st.text(st.characters(), max_size=8)))
def test_prompts(given_: Any) -> None:
    answers(Prompt.of, given_)


# ---------------------------------------------------------------- JSON files
def put(value: Any, path: list[int], new: Any) -> Any:
    """The same JSON with ``new`` at a path in it."""
    if not path or not isinstance(value, dict | list) or not value:
        return new
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, changed = keys[path[0] % len(keys)], value.copy()
    changed[key] = put(value[key], path[1:], new)
    return changed


places = st.lists(st.integers(0, 9), max_size=3)


@fuzz
@given(places, odd, st.integers(0, 10**6))
def test_policy_configurations(tmp_path: Path, place: list[int], new: Any, cut: int) -> None:
    whole = json.loads((ROOT / "addiffusion_env/agents/pretrained/emoji/config.json").read_text())
    text = json.dumps(put(whole, place, new), default=str)
    (tmp_path / "config.json").write_text(text if cut % 3 else text[: cut % len(text)])
    found = answers(load_config, tmp_path)
    if found is not None:
        answers(found.cost_per_nfe_for, 5.0)
        answers(EnvSettings.of, **found.environment)


MANIFEST = {
    "samplers": [{"name": "fixed:2", "variant": "v", "looks": False, "process": {"steps": 2}}],
    "backbone": "emoji",
    "prompt_ids": ["p0"],
    "prompts_digest": "0",
    "seeds": [0],
    "margins": [{"margin": 0.01, "set_at": "2026-01-01", "records_before": 0}],
    "cost_per_nfe": 0.02,
    "settings": {},
    "versions": {},
}


@fuzz
@given(places, odd)
def test_manifests(tmp_path: Path, place: list[int], new: Any) -> None:
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(put(MANIFEST, place, new), default=str))
    found = answers(read_manifest, tmp_path)
    if found is not None:
        assert found.margins and found.samplers
        assert found.select([]) == []


# ---------------------------------------------------------------- records
RECORD = Record("u", "v", "m", "emoji", "a dog", "p", "t", 1, 0, 2.0, 4, 2, (0, 1), 0, 0.5, 0.2, True, "", {}, 0.1)


@fuzz
@given(st.data())
def test_damaged_shards(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    store = RecordStore(tmp_path_factory.mktemp("records"))
    whole = store.write([RECORD])
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if kind == "flip":
            content[place] ^= data.draw(st.integers(1, 255))
        elif kind == "insert":
            content[place:place] = data.draw(st.binary(min_size=1, max_size=8))
        else:
            del content[place : place + data.draw(st.integers(1, 99))]
        if not content:
            break
    whole.write_bytes(bytes(content))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert store.read() in ([], [RECORD])
        store.set_aside_damaged()
        store.write([RECORD])
    assert store.read() == [RECORD]


def test_a_column_whose_name_is_not_text_counts_as_damage(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    shard = store.write([RECORD])
    shard.write_bytes(shard.read_bytes().replace(b"clip_score", b"\xf3lip_score"))
    with pytest.warns(UserWarning, match="cannot be read"):
        assert store.read() == []


@fuzz
@given(
    prompt=st.text(max_size=50), reason=st.text(max_size=50), extra=st.dictionaries(st.text(max_size=5), st.floats())
)
def test_saved_records_are_loaded_unchanged(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, reason: str, extra: dict[str, float]
) -> None:
    made = replace(RECORD, prompt=prompt, reason=reason, extra=extra)
    with suppress(UnicodeEncodeError):  # half a surrogate pair; Prompt.of refuses it
        to_table([made])
        store = RecordStore(tmp_path_factory.mktemp("records"))
        store.write([made])
        [found] = store.read()
        assert str(found) == str(made) and to_table([found]).schema.equals(SCHEMA)
