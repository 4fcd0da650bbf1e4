"""Speed, always as a ratio against something run beside it in the same minute: ``python -m addiffusion_env bench``.

One file an arm. Arms take turns, round by round, so that a busy machine slows all of them; the bare denoiser loop is
the limit that the others are held against.
"""

from addiffusion_env.registry import Registry

ARMS = Registry(
    "bench arm",
    {
        "bare": "addiffusion_lab.bench.denoiser:BareDenoiser",
        "pipeline": "addiffusion_lab.bench.diffusers_pipeline:DiffusersPipeline",
        "independent": "addiffusion_lab.bench.independent:looking_always",
        "independent_every": "addiffusion_lab.bench.independent:looking_seldom",
        "subproc": "addiffusion_lab.bench.subprocesses:Subprocesses",
        "vector": "addiffusion_lab.bench.vector_env:VectorEnvironment",
        "continue": "addiffusion_lab.bench.adaptive:always_continue",
        "any_pipeline": "addiffusion_lab.bench.any_pipeline:AnyPipeline",
    },
)
"""Name -> what makes the arm of a bed. Samplers (``fixed:50``, ``policy:emoji``) come beside them."""

CLOCKS = ("wall", "cpu")
