"""Speed benchmark, reported as ratios of arms that run interleaved: ``python -m addiffusion_env bench``.

One file per arm. The arms alternate round by round, so that load on the machine slows all of them; the bare denoiser
loop is the upper limit that the others are compared with.
"""

from addiffusion_env.registry import Registry

ARMS = Registry(
    "bench arm",
    {
        "bare": "addiffusion_lab.bench.arms:BareDenoiser",
        "pipeline": "addiffusion_lab.bench.arms:DiffusersPipeline",
        "independent": "addiffusion_lab.bench.arms:preview_always",
        "independent_every": "addiffusion_lab.bench.arms:preview_sometimes",
        "subproc": "addiffusion_lab.bench.arms:Subprocesses",
        "vector": "addiffusion_lab.bench.arms:VectorEnvironment",
        "continue": "addiffusion_lab.bench.arms:always_continue",
        "any_pipeline": "addiffusion_lab.bench.arms:AnyPipeline",
    },
)
"""Name -> factory of the arm for a benchmark setup. Samplers (``fixed:50``, ``policy:emoji``) are further arms."""

CLOCKS = ("wall", "cpu")
