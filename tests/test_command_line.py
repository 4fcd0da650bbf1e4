"""`python -m addiffusion_env`."""

import json

import pytest

from addiffusion_env.__main__ import main


def test_list_names_everything(capsys):
    main(["list"])
    out = capsys.readouterr().out
    for name in ("AdDiffusion-Emoji-v0", "emoji", "clip", "nfe_price", "ddim", "fixed", "as_published", "restart"):
        assert name in out


def test_list_says_of_every_method_whether_it_runs_here(capsys, monkeypatch, tmp_path):
    from huggingface_hub import constants

    from addiffusion_env.baselines import BASELINES

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))  # an empty cache
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    first = lines.index("methods, as they are written, and whether they run here:") + 1
    lines = [line.strip() for line in lines[first:]]
    assert [line.split(":")[0] for line in lines] == list(BASELINES)
    runs = {line.split(":")[0]: line.split()[1] for line in lines}
    assert {name for name, state in runs.items() if state == "no"} == {"lcm", "turbo", "fbcache"}
    assert all("Needs backbone=" in line for line in lines if line.split()[1] == "no")
    snapshot = tmp_path / "models--stabilityai--sdxl-turbo" / "snapshots" / "1f3e"
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    assert BASELINES.load("turbo").needs() == ""


def test_check_refuses_an_unknown_id(capsys):
    with pytest.raises(SystemExit):
        main(["check", "AdDiffusion-Emojy-v0"])
    assert "did you mean 'AdDiffusion-Emoji-v0'" in capsys.readouterr().err


def test_bench_prints_a_ratio_and_writes_json(capsys, tmp_path):
    path = tmp_path / "bench.json"
    arms = ["--arms", "bare", "vector", "--methods", "fixed:2"]
    main(["bench", "--lanes", "1", "--steps", "2", "--rounds", "1", "--images", "1", *arms, "--json", str(path)])
    assert "of bare" in capsys.readouterr().out
    found = json.loads(path.read_text())
    assert [row["arm"] for row in found["rows"]][::2] == ["bare denoiser loop", "AdaptivePipeline, fixed:2"]
    assert 0 < found["rows"][1]["of_bare"] < 2
