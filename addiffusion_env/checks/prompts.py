"""Contracts of prompt sources, including benchmarks."""

from __future__ import annotations

import numpy as np

from addiffusion_env.checks.base import require
from addiffusion_env.prompts import PromptSource

SOME = 16


def it_is_a_source(source: PromptSource) -> None:
    """It has a name and gives prompts with text and an id."""
    require(isinstance(source, PromptSource), f"{type(source).__name__} is no PromptSource", "write sample and take")
    require(bool(source.name), "it has no name", "records are named by it")
    for prompt in source.take(SOME):
        require(bool(prompt.text.strip()), f"prompt {prompt.prompt_id!r} is empty", "remove it")
        require(bool(prompt.prompt_id), f"{prompt.text!r} has no id", "noise and records are keyed by it")
        require(prompt.constraints >= 0, f"{prompt.text!r} has {prompt.constraints} constraints", "count from 0")


def ids_are_unique(source: PromptSource) -> None:
    """No two prompts of one list share an id, for every seed."""
    for seed in (0, 1):
        ids = [prompt.prompt_id for prompt in source.take(SOME, seed)]
        double = len(ids) - len(set(ids))
        require(not double, f"{double} ids of {len(ids)} are duplicates", "number them")


def a_list_belongs_to_its_seed(source: PromptSource) -> None:
    """take(n, seed) always returns the same list, of n prompts if there are enough."""
    for seed in (0, 1):
        require(source.take(SOME, seed) == source.take(SOME, seed), f"seed {seed} gave two lists", "draw from the seed")
    require(len(source.take(1)) == 1, f"take(1) gave {len(source.take(1))} prompts", "return as many as requested")


def a_draw_is_the_generators(source: PromptSource) -> None:
    """sample(rng) is a function of the generator alone."""
    generators = np.random.default_rng(3), np.random.default_rng(3)
    first, second = ([source.sample(rng).prompt_id for _ in range(4)] for rng in generators)
    require(first == second, "equal generators drew different prompts", "take all randomness from rng")


PROMPT_CONTRACTS = (it_is_a_source, ids_are_unique, a_list_belongs_to_its_seed, a_draw_is_the_generators)
"""Subject: a :class:`PromptSource`."""
