"""Record shards: round trip, atomicity, damage."""

import os
import warnings

import pyarrow.parquet as pq
import pytest
from eval_records import record

from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.errors import RunFolderError
from addiffusion_env.evaluation.records import SCHEMA, Record, by_sampler, from_table, to_table, uid_of, variant_of
from addiffusion_env.evaluation.store import RecordStore
from addiffusion_env.samplers import make_sampler


def test_the_schema_is_the_record():
    assert SCHEMA.names == list(Record.__dataclass_fields__)


def test_records_survive_the_disk(tmp_path):
    store = RecordStore(tmp_path / "new" / "records")
    first = [record(prompt=1, correct=None, reason="", extra={"hps": 0.27}), record(prompt=0, actions=(0, 2, 1))]
    store.write(first, {first[0].uid: b"png"})
    store.write([record(prompt=2, preference=float("-1.5"))])
    assert store.read() == sorted([*first, record(prompt=2, preference=-1.5)], key=lambda r: r.prompt_id)
    assert store.images([first[0].uid, "other"]) == {first[0].uid: b"png"}
    assert from_table(to_table(first)) == first


def test_the_newest_record_of_a_image_counts(tmp_path):
    store = RecordStore(tmp_path)
    store.write([record(preference=1.0)])
    store.write([record(preference=2.0)])
    assert [r.preference for r in store.read()] == [2.0]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_shard_is_named_and_set_aside(tmp_path, damage):
    store = RecordStore(tmp_path)
    store.write([record(prompt=0)])
    path = store.write([record(prompt=n) for n in range(1, 30)])
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flip":
        data[200:260] = bytes(255 - byte for byte in data[200:260])
    else:
        data = bytearray()
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=path.name):
        assert [r.prompt_id for r in store.read()] == ["p0000"]
    with pytest.warns(UserWarning, match="set aside"):
        assert [p.name for p in store.set_aside_damaged()] == [path.name + ".damaged"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(store.read()) == 1


def test_a_write_that_fails_leaves_nothing_to_read(tmp_path, monkeypatch):
    store = RecordStore(tmp_path)
    store.write([record(prompt=0)])

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="No space left on device"):
        store.write([record(prompt=1)])
    assert [path.name for path in tmp_path.iterdir()] == [store.shards()[0].name]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file"):
        RecordStore(tmp_path / "file" / "records")


def test_shards_from_before_memory_was_measured_are_still_read(tmp_path):
    store = RecordStore(tmp_path)
    old, new = record(prompt=0, peak_memory=None), record(prompt=1, peak_memory=3 << 30)
    path = store.write([old])
    pq.write_table(pq.read_table(path).drop_columns(["peak_memory"]), path)
    store.write([new])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.read() == [old, new]


def test_shards_of_another_schema_are_left_out(tmp_path):
    store = RecordStore(tmp_path)
    path = store.write([record()])
    pq.write_table(to_table([record()]).drop(["seconds"]), path)
    with pytest.warns(UserWarning, match="other columns"):
        assert store.read() == []


def test_variant_and_uid_change_with_what_matters():
    sampler, process = make_sampler("fixed:8"), ProcessConfig()
    variant = variant_of(sampler, "emoji", process)
    assert variant == variant_of(make_sampler("fixed:8"), "emoji", ProcessConfig())
    assert variant == variant_of(
        sampler, "emoji", ProcessConfig(evaluations=39)
    )  # the backbone's scheduler decides them
    others = [
        variant_of(make_sampler("fixed:9"), "emoji", process),
        variant_of(sampler, "sd15", process),
        variant_of(sampler, "emoji", ProcessConfig(guidance_scale=5.0)),
    ]
    assert len({variant, *others}) == 4
    assert len({uid_of(variant, "p", 0), uid_of(variant, "p", 1), uid_of(variant, "q", 0)}) == 3
    assert list(by_sampler([record("b"), record("a"), record("b", 1)])) == ["b", "a"]
