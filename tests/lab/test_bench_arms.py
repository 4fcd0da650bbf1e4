"""The benchmark: every arm does the work it reports, its time is accounted for, and table and JSON agree."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from addiffusion_env.backbones import BACKBONES
from addiffusion_env.errors import UnknownNameError
from addiffusion_env.profiling import Clock, peak_bytes, processor_seconds, reset_peak
from addiffusion_lab.bench import ARMS
from addiffusion_lab.bench.arms import Independent, by_sampler
from addiffusion_lab.bench.measure import STAGES, Round, measure, result, shares_of
from addiffusion_lab.bench.setup import BenchmarkSetup, load_options, make_setup
from addiffusion_lab.tiny_pipelines.backbones import BUILDERS
from addiffusion_lab.tiny_pipelines.parts import tiny_autoencoder

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
HERE = [name for name in ARMS if name != "subproc"]


@pytest.fixture(scope="module")
def setup():
    return make_setup("emoji", lanes=2, steps=4, preview_every=2, images=3)


@pytest.mark.parametrize("name", HERE)
def test_an_arm_does_what_it_counts(setup, name):
    rows = []
    arm = ARMS.load(name)(setup)
    hook = setup.backbone.denoiser.register_forward_pre_hook(lambda network, inputs: rows.append(len(inputs[0])))
    done = arm.round()
    hook.remove()
    assert sum(rows) == 2 * done.lane_steps == 2 * 2 * 4  # guided: two rows an evaluation, of two lanes in four steps
    assert done.images == (0 if name == "bare" else 2)
    assert len(rows) == (8 if name.startswith("independent") else 4)


def test_a_setup_is_loaded_as_asked(setup):
    half = make_setup("emoji", 1, 4, 2, None, **load_options(["dtype=bfloat16"]))
    assert (setup.backbone.dtype, half.backbone.dtype) == (torch.float32, torch.bfloat16)
    assert half.settings["dtype"] == "bfloat16"  # the processes of other arms load the same


def test_samplers_run_through_the_pipeline(setup):
    fixed = by_sampler(setup, "fixed:2").round()
    assert (fixed.lane_steps, fixed.images) == (6, 3)
    policy = by_sampler(setup, "policy:emoji")
    assert policy.pipe.sampler.needs_preview
    with pytest.raises(UnknownNameError, match="did you mean 'fixed'"):
        by_sampler(setup, "fixd:2")


def test_shares_add_up_and_the_bare_loop_is_the_limit(setup):
    rows = {row.arm: row for row in measure(setup, ["bare", "vector", "pipeline"], [], rounds=1, clock="cpu")}
    bare, vector = rows["bare denoiser loop"], rows["vector env, preview every 1"]
    for row in (bare, vector):
        assert sum(row.shares.values()) == pytest.approx(1, abs=1e-6)
    assert bare.of_bare == 1 and bare.shares["denoise"] > 0.9 and bare.images is None
    assert vector.shares["look"] > 0 and vector.shares["decode"] > 0
    assert rows["diffusers pipeline"].shares is None
    # The class's own methods are restored.
    assert not {"predict", "preview", "decode"} & set(vars(setup.backbone))


def test_ratios_are_taken_round_by_round(setup):
    none = dict.fromkeys(STAGES, 0.0)
    bare = [Round(1.0, 8, 0, none, 10.0), Round(4.0, 8, 0, none, 12.0), Round(1.0, 8, 0, none, None)]
    arm = [Round(2.0, 8, 2, none, 20.0), Round(8.0, 8, 2, none, 30.0), Round(2.0, 8, 2, none, None)]
    row = result(setup, "an arm", arm, bare)  # the second round ran under load
    assert (row.of_bare, row.ms, row.images, row.peak, row.rounds) == (0.5, 250.0, 1.0, 30.0, 3)
    assert shares_of(arm) is None


def test_clocks_and_memory():
    import os

    cpu, before = Clock("cpu", torch.device("cpu")), processor_seconds(os.getpid())
    began = cpu()
    sum(range(3_000_000))
    assert cpu() > began
    assert processor_seconds(os.getpid()) >= before
    reset_peak(torch.device("cpu"))
    start = peak_bytes(torch.device("cpu"))
    # Not every kernel resets the peak, and some reclaim idle pages meanwhile: freed memory is filled first.
    kept = []
    while peak_bytes(torch.device("cpu")) <= start + 40 * 2**20 and len(kept) < 40:
        kept.append(torch.ones(64 * 2**18))  # 64 MiB
    assert kept and peak_bytes(torch.device("cpu")) > start + 40 * 2**20
    del kept


@pytest.mark.slow
def test_subprocesses_are_counted(setup):
    [row] = measure(setup, ["subproc"], [], rounds=1, clock="cpu")
    [alone] = measure(setup, ["vector"], [], rounds=1, clock="cpu")
    assert row.ms > 0 and row.images > 0
    assert row.peak > alone.peak  # two more copies of everything


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux"])
def test_models_that_were_built_here(tmp_path, name, scorers):
    """The code path of full-size models on a GPU, with 16x16 images."""
    from unittest import mock

    from addiffusion_env.envs import episodes

    options = (
        {"image_size": 16, "pipeline_kwargs": {"max_sequence_length": 64}}
        if name == "flux"
        else {"batch_buckets": [4, 8]}
    )
    preview = tiny_autoencoder(16 if name == "flux" else 4)
    backbone = BACKBONES.load(name).from_pipeline(BUILDERS[name](tmp_path), preview=preview, **options)
    tiny = BenchmarkSetup(backbone, scorers, lanes=2, steps=2, preview_every=2, images=2)
    with mock.patch.object(episodes, "load_scorers", return_value=scorers):
        rows = measure(tiny, list(ARMS), ["fixed:2"], rounds=1, clock="wall")
    assert len(rows) == len(ARMS)  # all but subproc, which needs a model with a name, and the sampler
    assert all(row.lane_steps > 0 for row in rows)


def test_an_independent_arm_times_a_few_lanes_only(setup):
    many = Independent(replace(setup, lanes=64), 4)
    assert len(many.envs) == 4


def test_the_command_line_reads_lists_without_loading_torch():
    from addiffusion_lab.bench.arguments import add_arguments

    parser = ArgumentParser()
    add_arguments(parser)
    chosen = parser.parse_args(["--lanes", "1", "2", "--arms", "bare", "--samplers", "fixed:50", "--clock", "cpu"])
    assert (chosen.lanes, chosen.arms, chosen.samplers, chosen.clock) == ([1, 2], ["bare"], ["fixed:50"], "cpu")


def test_the_json_has_the_tables_numbers(tmp_path, setup, capsys):
    from addiffusion_lab.bench.cli import run_setup

    parser = ArgumentParser()
    from addiffusion_lab.bench.arguments import add_arguments

    add_arguments(parser)
    path = tmp_path / "bench.json"
    chosen = parser.parse_args(["--lanes", "1", "2", "--rounds", "1", "--arms", "bare", "--json", str(path)])
    rows = run_setup(setup, chosen, [])
    found = json.loads(path.read_text())
    assert [row["lanes"] for row in found["rows"]] == [1, 2] and found["clock"] == "wall"
    out = capsys.readouterr().out
    assert all(f"{row.ms:.1f}" in out for row in rows)


def test_an_empty_list_of_samplers_is_none_and_not_the_shipped_policy(capsys):
    from addiffusion_env.__main__ import main

    small = ["bench", "--lanes", "1", "--steps", "2", "--rounds", "1"]
    main([*small, "--arms", "bare", "--samplers"])
    assert [line.split(" |")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:] == [
        "| bare denoiser loop"
    ]
    with pytest.raises(SystemExit):
        main([*small, "--arms", "--samplers"])
    assert "nothing to measure" in capsys.readouterr().err
