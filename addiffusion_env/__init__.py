"""AdDiffusion: adaptive inference for text-to-image diffusion as a Markov decision process.

Importing this package registers the environment ids and loads nothing heavy: no torch, no diffusers.
"""

from __future__ import annotations

from typing import Any

from gymnasium.envs.registration import register, registry

__version__ = "0.1.0"


def _checked(
    backbone: str, steps: int, decide_at: list[int], early_exit: int, limit: int, **more: Any
) -> dict[str, Any]:
    """Checked attempts, which pay on the emoji world (docs/results.md), for a model from the hub.

    The policy decides at two steps of an attempt (leave it into ``early_exit`` evaluations, begin anew), since an
    attempt takes many evaluations here; at the finished image; and returns the best of up to ``limit + 1`` attempts.
    At the highest cost per NFE an attempt costs about 0.1, a tenth of what a right image is worth. No figure of it was
    measured with real weights.
    """
    return {
        "backbone": backbone,
        "steps": steps,
        "solver": "ddim",  # a table of attempts needs a single-step solver; on rectified flow this is Euler's step
        "early_exit_steps": early_exit,
        "decide_at": decide_at,
        "check_finished": True,
        "refine": {"preset": "resample_keep_best", "return_to": decide_at[0], "limit": limit},
        "reward": {"preset": "default"},
        "cost_per_nfe": [0.0, round(0.1 / steps, 4)],
        "observation_keys": ["clip", "timestep", "quality", "cost_per_nfe", "correctness", "prior", "spent"],
        **more,
    }


# The interval of noise levels that arXiv:2404.07724 found best for SDXL; _FLOW holds the same signal-to-noise ratios.
_GUIDED: dict[str, Any] = {"spacing": "trailing", "guidance_interval": [0.28, 5.42]}
_FLOW: dict[str, Any] = {"guidance_interval": [0.22, 0.84]}

ENVIRONMENTS: dict[str, dict[str, Any]] = {
    # The first process of the emoji backbone, kept so that earlier results can be reproduced.
    "AdDiffusion-Emoji-v0": {"backbone": "emoji", "steps": 8, "spacing": "coarse_fine", "refine": "resample"},
    # The process of earlier results: previews at steps 3 and 4, and further attempts that begin with a decision there.
    "AdDiffusion-Emoji-v1": {
        "backbone": "emoji",
        "prompt_options": {"split": "train"},
        "steps": 6,
        "spacing": "trailing",
        "solver": "ddim",
        "guidance_scale": 4.0,
        "guidance_interval": [3.0, 7.0],
        "early_exit_steps": 2,
        "decide_at": [3, 4],
        "check_finished": True,
        "refine": {"preset": "resample_keep_best", "limit": 4, "utility": {"calibrator": "emoji"}},
        "reward": {"preset": "default", "terminal_bonus": {"centre": 0.0, "width": 2.0, "calibrator": "emoji"}},
        "cost_per_nfe": [0.0, 0.03],
        "observation_keys": ["clip", "timestep", "quality", "cost_per_nfe", "correctness"],
    },
    # The process of `make train`, of the shipped policy and of the published results.
    "AdDiffusion-Emoji-v2": {
        "backbone": "emoji",
        "prompt_options": {"split": "train"},
        "steps": 5,
        "spacing": "trailing",
        "solver": "ddim",
        "guidance_scale": 4.0,
        # Guides one evaluation of five, the second, which decides the image's content; the others cost half an NFE.
        "guidance_interval": [3.0, 7.0],
        # An attempt is either an early exit from pure noise, three unguided evaluations (1.5 NFE), or the whole
        # schedule (3 NFE). Previews inside it cost a third of an evaluation each and decided nothing.
        "early_exit_steps": 3,
        "decide_every": 5,
        "check_finished": True,
        # A low score calls for another attempt from fresh noise, which the policy begins as it began the first; the
        # attempt of the highest utility is kept.
        "refine": {
            "preset": "resample_keep_best",
            "return_to": 0,
            "limit": 5,
            "utility": {"calibrator": "emoji"},
        },
        # The probability of being correct, with halved log-odds so that .99 and .999 still differ.
        "reward": {"preset": "default", "terminal_bonus": {"centre": 0.0, "width": 2.0, "calibrator": "emoji"}},
        # Drawn per episode and observed by the policy.
        "cost_per_nfe": [0.002, 0.45],
        # The 256 numbers of CLIP's embeddings are learned by heart from the prompts of a table; the calibrator says in
        # two how hard the prompt is and whether the image is correct.
        "observation_keys": ["timestep", "correctness", "prior", "spent", "cost_per_nfe"],
    },
    "AdDiffusion-SD15-v0": {"backbone": "sd15", "steps": 50, "refine": "as_published"},
    "AdDiffusion-SD21-v0": {"backbone": "sd21", "steps": 50, "refine": "as_published"},
    "AdDiffusion-SDXL-v0": {"backbone": "sdxl", "steps": 50, "refine": "as_published"},
    "AdDiffusion-FluxSchnell-v0": {"backbone": "flux", "steps": 4, "refine": "as_published"},
    "AdDiffusion-SD35-v0": {"backbone": "sd35", "steps": 40, "refine": "resample"},
    "AdDiffusion-Flux2Klein-v0": {"backbone": "flux2_klein", "steps": 4, "refine": "resample"},
    "AdDiffusion-ZImageTurbo-v0": {"backbone": "z_image", "steps": 8, "refine": "resample"},
    "AdDiffusion-QwenImage-v0": {"backbone": "qwen_image", "steps": 50, "refine": "resample"},
    # Checked attempts: what configs/backbone trains on.
    "AdDiffusion-SD15-v1": _checked("sd15", 20, [5, 10], 8, 3, **_GUIDED),
    "AdDiffusion-SD21-v1": _checked("sd21", 20, [5, 10], 8, 3, **_GUIDED),
    "AdDiffusion-SDXL-v1": _checked("sdxl", 20, [5, 10], 8, 3, **_GUIDED),
    "AdDiffusion-SD35-v1": _checked("sd35", 28, [7, 14], 10, 3, **_FLOW),
    "AdDiffusion-FluxSchnell-v1": _checked("flux", 4, [2], 1, 3),
    "AdDiffusion-Flux2Klein-v1": _checked("flux2_klein", 4, [2], 1, 3),
    "AdDiffusion-ZImageTurbo-v1": _checked("z_image", 8, [3, 5], 2, 3),
    "AdDiffusion-QwenImage-v1": _checked("qwen_image", 30, [8, 15], 10, 2),
    # Any pipeline: pipe= or name_or_path=. Its steps, guidance and scheduler are the defaults.
    "AdDiffusion-Diffusers-v0": {"backbone": "diffusers", "refine": "resample"},
}
"""Environment id -> its settings. A new id is one entry here."""

_LAZY = {
    "AdDiffusionEnv": "addiffusion_env.envs.env",
    "AdDiffusionVectorEnv": "addiffusion_env.envs.vector_env",
    "AdDiffusionVecEnv": "addiffusion_env.envs.sb3_env",
    "AdaptivePipeline": "addiffusion_env.agents.pipeline",
    "AdDiffusionError": "addiffusion_env.errors",
    "calibrate": "addiffusion_env.calibration.calibrate",
}

__all__ = ["ENVIRONMENTS", *_LAZY]


def _register() -> None:
    """Registers every id; may be called more than once, as in spawned workers."""
    for name, settings in ENVIRONMENTS.items():
        if name not in registry:
            register(
                id=name,
                entry_point="addiffusion_env.envs.env:AdDiffusionEnv",
                vector_entry_point="addiffusion_env.envs.vector_env:AdDiffusionVectorEnv",
                kwargs=dict(settings),
                # Episodes are determined by their seed, so Gymnasium may check determinism.
                nondeterministic=False,
            )


def __getattr__(name: str) -> Any:
    """Public classes, imported on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


_register()
