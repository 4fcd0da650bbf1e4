"""The stop table: landed at every stop, resumable, with the best constant and the oracle."""

import numpy as np
import pytest
import rounding

from addiffusion_env.baselines import make_method
from addiffusion_env.engine.engine import Engine
from addiffusion_env.envs.loading import load_backbone, load_scorers
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.evaluation import stop_table


def test_every_stop_is_what_the_constant_stop_makes(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--steps", "4", "--prompts", "3", "--price", "0.02"]
    found = stop_table.main(arguments)
    settings = EnvSettings.of(backbone="emoji", steps=4, refine="off", prompt_options={"split": "train"})
    prompts = settings.prompt_source().take(3, seed=0)
    [shard] = tmp_path.glob("*.parquet")
    stamp = shard.stat().st_mtime_ns
    table = stop_table.record_stops(settings, prompts, tmp_path)
    assert shard.stat().st_mtime_ns == stamp  # read, not made again
    backbone = load_backbone(settings)
    scorers = load_scorers(backbone)
    method = make_method("stop:2")
    process = method.process(settings.process(backbone.capabilities, backbone.name))
    engine = Engine(backbone, scorers, decider=method.decide)
    episodes = engine.run([method.program(backbone, process, prompt, 0) for prompt in prompts])
    place = table.landing(1)
    assert table.kind(place) == "landed from 2"
    np.testing.assert_allclose(
        table.preference[:, 0, place],
        [e.picture.look.preference[0] for e in episodes],
        rtol=0,
        atol=rounding.PREFERENCE,
    )
    assert table.nfe[:, 0, place].tolist() == [e.lane.nfe for e in episodes]
    assert [row.nfe for row in found.rows] == sorted(row.nfe for row in found.rows)
    assert sum(row.oracle_share for row in found.rows) == pytest.approx(1.0)
    assert found.regret >= -1e-6 and np.isfinite([row.correct for row in found.rows]).all()
    assert "best constant stop" in capsys.readouterr().out
