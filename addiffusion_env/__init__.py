"""AdDiffusion: adaptive inference for text-to-image diffusion as a Markov decision process.

Importing this package registers the environment ids and loads nothing heavy: no torch, no diffusers.
"""

from __future__ import annotations

from typing import Any

from gymnasium.envs.registration import register, registry

__version__ = "0.1.0"

ENVIRONMENTS: dict[str, dict[str, Any]] = {
    # The first process of the emoji backbone, kept so that earlier results can be reproduced.
    "AdDiffusion-Emoji-v0": {"backbone": "emoji", "steps": 8, "spacing": "coarse_fine", "refine": "resample"},
    # The process of `make train`, of the shipped policy and of the published results.
    "AdDiffusion-Emoji-v1": {
        "backbone": "emoji",
        "prompt_options": {"split": "train"},
        "steps": 6,
        "spacing": "trailing",
        "solver": "ddim",
        "guidance_scale": 4.0,
        # Guides one evaluation of six, the second, which decides the image's content; the others cost half an NFE.
        "guidance_interval": [3.0, 7.0],
        "early_exit_steps": 2,
        # Earlier previews are uninformative, and each takes a third of the time of an evaluation.
        "decide_at": [3, 4],
        "check_finished": True,
        # A low score calls for another attempt from fresh noise; the attempt of the highest utility is kept.
        "refine": {"preset": "resample_keep_best", "limit": 4, "utility": {"calibrator": "emoji"}},
        # The probability of being correct, with halved log-odds so that .99 and .999 still differ.
        "reward": {"preset": "default", "terminal_bonus": {"centre": 0.0, "width": 2.0, "calibrator": "emoji"}},
        # Drawn per episode and observed by the policy.
        "cost_per_nfe": [0.0, 0.03],
        "observation_keys": ["clip", "timestep", "quality", "cost_per_nfe", "correctness"],
    },
    "AdDiffusion-SD15-v0": {"backbone": "sd15", "steps": 50, "refine": "as_published"},
    "AdDiffusion-SD21-v0": {"backbone": "sd21", "steps": 50, "refine": "as_published"},
    "AdDiffusion-SDXL-v0": {"backbone": "sdxl", "steps": 50, "refine": "as_published"},
    "AdDiffusion-FluxSchnell-v0": {"backbone": "flux", "steps": 4, "refine": "as_published"},
    "AdDiffusion-SD35-v0": {"backbone": "sd35", "steps": 40, "refine": "resample"},
    "AdDiffusion-Flux2Klein-v0": {"backbone": "flux2_klein", "steps": 4, "refine": "resample"},
    "AdDiffusion-ZImageTurbo-v0": {"backbone": "z_image", "steps": 8, "refine": "resample"},
    "AdDiffusion-QwenImage-v0": {"backbone": "qwen_image", "steps": 50, "refine": "resample"},
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

__all__ = [
    "ENVIRONMENTS",
    "AdDiffusionEnv",
    "AdDiffusionError",
    "AdDiffusionVecEnv",
    "AdDiffusionVectorEnv",
    "AdaptivePipeline",
    "calibrate",
]


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
