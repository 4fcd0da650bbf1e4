"""What an episode begins with: its prompt, the seed of its image and its cost per NFE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from addiffusion_env.errors import ConfigError, nearest
from addiffusion_env.old_names import present
from addiffusion_env.prompts import Prompt, PromptSource

RESET_OPTIONS = ("prompt", "prompt_id", "seed", "cost_per_nfe")


def draw(
    source: PromptSource,
    costs_per_nfe: tuple[float, float],
    read: Callable[[str], Prompt],
    seed: int,
    episode: int,
    options: Mapping[str, Any],
) -> tuple[Prompt, int, float]:
    """The prompt, image seed and cost per NFE of an episode, from the lane's seed and the reset's options.

    Args:
        source: prompts of episodes without one of their own.
        costs_per_nfe: the range that costs per NFE are drawn from.
        read: reads a user's text; it gets the id that it has in the backbone's prompt set, so that its noise is the
            same.
        seed: of the lane.
        episode: index of the episode under that seed.
        options: see :data:`RESET_OPTIONS`.

    Raises:
        ConfigError: for an unknown option, or a ``prompt_id`` without a ``prompt``.
    """
    options = present("reset option", options)
    for key in options:
        if key not in RESET_OPTIONS:
            raise ConfigError(f"reset has no option {key!r}", nearest(key, RESET_OPTIONS))
    prompt, prompt_id = options.get("prompt"), options.get("prompt_id")
    if prompt_id is not None and prompt is None:
        raise ConfigError("reset was given a prompt_id without a prompt", "give both, or a prompt alone")
    rng = np.random.default_rng([seed, episode])
    drawn, image_seed = source.sample(rng), int(rng.integers(2**31))
    cost_per_nfe = float(rng.uniform(*costs_per_nfe))
    if prompt is not None:
        drawn = Prompt.of(read(prompt) if isinstance(prompt, str) else prompt, prompt_id)
    return drawn, int(options.get("seed", image_seed)), float(options.get("cost_per_nfe", cost_per_nfe))
