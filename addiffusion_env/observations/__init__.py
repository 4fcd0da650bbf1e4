"""The registry of observation keys, and what a list of keys needs. A new key is one class and one line here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from addiffusion_env.registry import Registry

FEATURES = Registry(
    "observation key",
    {
        "clip": "addiffusion_env.observations.features:Clip",
        "timestep": "addiffusion_env.observations.features:Timestep",
        "quality": "addiffusion_env.observations.features:Quality",
        "cost_per_nfe": "addiffusion_env.observations.features:CostPerNfe",
        "attempts": "addiffusion_env.observations.features:Attempts",
        "correctness": "addiffusion_env.observations.features:Correctness",
        "prior": "addiffusion_env.observations.features:Prior",
        "checked": "addiffusion_env.observations.features:Checked",
        "phrases": "addiffusion_env.observations.features:Phrases",
        "features": "addiffusion_env.observations.features:DenoiserFeatures",
        "spent": "addiffusion_env.observations.features:Spent",
        "prompt": "addiffusion_env.observations.features:PromptEmbedding",
    },
)
"""Key -> a subclass of :class:`~addiffusion_env.observations.features.Feature`."""

UTILITY = "utility"
"""Placeholder for the scorers of ``refine.utility``, which depend on its settings."""

STANDARD_KEYS = ("clip", "timestep", "quality")

OBSERVATION_PRESETS = {
    "standard": STANDARD_KEYS,
    "denoiser": ("features", "prompt", "timestep", "spent"),
    "denoiser_checked": ("features", "prompt", "timestep", "spent", "attempts", "checked"),
}
"""Name -> keys. ``denoiser`` needs no preview and no scorer: the denoiser's features and the prompt.
``denoiser_checked`` adds the scores of finished images, for processes with ``check_finished``."""


def features_of(keys: Sequence[str]) -> dict[str, Any]:
    """Key -> its :class:`~addiffusion_env.observations.features.Feature`.

    Raises:
        UnknownNameError: for an unknown key.
    """
    return {key: FEATURES.load(key)() for key in keys}


def needs_preview(keys: Sequence[str]) -> bool:
    """Whether an observation of these keys needs a preview to be decoded and scored at each decision.

    >>> needs_preview(["timestep", "quality"]), needs_preview(OBSERVATION_PRESETS["denoiser"])
    (True, False)
    """
    return any(feature.needs_preview for feature in features_of(keys).values())


def needs_features(keys: Sequence[str]) -> bool:
    """Whether an observation of these keys needs the denoiser's features.

    >>> needs_features(["timestep", "quality"]), needs_features(OBSERVATION_PRESETS["denoiser"])
    (False, True)
    """
    return any(feature.needs_features for feature in features_of(keys).values())


def parts_shown(keys: Sequence[str], utility: Sequence[str]) -> tuple[str, ...]:
    """The scorers on which an observation of these keys depends, by their part in :class:`.ImageScorers`.

    Args:
        keys: the observation keys.
        utility: the scorers of ``refine.utility``.

    >>> parts_shown(["timestep", "attempts"], ("preference", "clip")), parts_shown(OBSERVATION_PRESETS["denoiser"], ())
    (('preference', 'clip'), ())
    """
    parts = [part for feature in features_of(keys).values() for part in feature.shows]
    return tuple(dict.fromkeys(p for part in parts for p in (utility if part == UTILITY else (part,))))
