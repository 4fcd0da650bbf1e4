"""`python -m addiffusion_env`."""

import json

import pytest

from addiffusion_env.__main__ import main


def test_list_names_everything(capsys):
    main(["list"])
    out = capsys.readouterr().out
    for name in ("AdDiffusion-Emoji-v0", "emoji", "clip", "nfe_price", "ddim", "fixed", "as_published", "restart"):
        assert name in out


def test_check_refuses_an_unknown_id(capsys):
    with pytest.raises(SystemExit):
        main(["check", "AdDiffusion-Emojy-v0"])
    assert "did you mean 'AdDiffusion-Emoji-v0'" in capsys.readouterr().err


def test_bench_prints_a_ratio_and_writes_json(capsys, tmp_path):
    main(["bench", "--lanes", "2", "--rounds", "1", "--json", str(tmp_path / "bench.json")])
    assert "env : bare" in capsys.readouterr().out
    [row] = json.loads((tmp_path / "bench.json").read_text())
    assert row["lanes"] == 2 and 0 < row["ratio"] < 2
