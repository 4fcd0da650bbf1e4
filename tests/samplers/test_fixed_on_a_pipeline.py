"""Fixed steps on a process that keeps the pipeline's own timesteps: some schedulers have no others."""

import numpy as np
import pytest

from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.samplers import make_sampler
from addiffusion_lab.tiny_pipelines import ZOO


@pytest.mark.parametrize("name", ["fixed:2", "best_of:2x2", "threshold_resample:0.5,2,2", "prompt_rule:3,2"])
def test_fixed_steps_keep_the_pipelines_timesteps(sd3, name):
    base = EnvSettings(steps=4, solver="ddim", refine="off").process(sd3.capabilities, sd3.name)
    process = make_sampler(name).process(base)
    assert (process.solver, process.spacing) == ("ddim", "scheduler")
    own = sd3.sigmas(process.steps, process.spacing)
    assert len(own) == process.steps + 1 and (np.diff(own) < 0).all()


@pytest.fixture(scope="module")
def sd3():
    return PipelineBackbone(ZOO["sd3"]())
