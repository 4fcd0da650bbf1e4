"""AdDiffusion: adaptive inference for text-to-image diffusion as a Markov decision process.

Importing this package registers the environment ids and loads nothing heavy: no torch, no diffusers.
"""

from __future__ import annotations

from typing import Any

from gymnasium.envs.registration import register, registry

__version__ = "0.1.0"

EMOJI_LIKING = {"clip_weight": 0.8, "clip_centre": 0.855, "clip_scale": 0.07}

ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "AdDiffusion-Emoji-v0": {  # as configs/backbone/emoji.yaml has it, where each choice is explained
        "backbone": "emoji",
        "steps": 6,
        "guidance_interval": [3.0, 7.0],
        "landing_steps": 2,
        "decide_at": [3, 4],
        "check_finished": True,
        "refine": {"preset": "again", "limit": 4, "liking": EMOJI_LIKING},
        "reward": {"preset": "default", "terminal_bonus": {"centre": 0.6, "width": 0.4, **EMOJI_LIKING}},
    },
    "AdDiffusion-SD15-v0": {"backbone": "sd15", "steps": 50, "refine": "as_published"},
    "AdDiffusion-SD21-v0": {"backbone": "sd21", "steps": 50, "refine": "as_published"},
    "AdDiffusion-SDXL-v0": {"backbone": "sdxl", "steps": 50, "refine": "as_published"},
    "AdDiffusion-FluxSchnell-v0": {"backbone": "flux", "steps": 4, "refine": "as_published"},
}
"""Environment id -> its settings. A new id is one line."""

_LAZY = {
    "AdDiffusionEnv": "addiffusion_env.envs.env",
    "AdDiffusionVectorEnv": "addiffusion_env.envs.vector_env",
    "AdDiffusionVecEnv": "addiffusion_env.agents.vec_env",
    "AdaptivePipeline": "addiffusion_env.agents.pipeline",
    "AdDiffusionError": "addiffusion_env.errors",
}

__all__ = [
    "ENVIRONMENTS",
    "AdDiffusionEnv",
    "AdDiffusionError",
    "AdDiffusionVecEnv",
    "AdDiffusionVectorEnv",
    "AdaptivePipeline",
]


def _register() -> None:
    """Registers every id; safe to call twice, as spawned workers do."""
    for name, settings in ENVIRONMENTS.items():
        if name not in registry:
            register(
                id=name,
                entry_point="addiffusion_env.envs.env:AdDiffusionEnv",
                vector_entry_point="addiffusion_env.envs.vector_env:AdDiffusionVectorEnv",
                kwargs=dict(settings),
                # Episodes are a function of their seed, so Gymnasium may check determinism.
                nondeterministic=False,
            )


def __getattr__(name: str) -> Any:
    """Public classes, imported on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


_register()
