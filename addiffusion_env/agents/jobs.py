"""Turns prompts, seeds and images per prompt into one job per image, lazily."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any

from addiffusion_env.agents.trace import Job
from addiffusion_env.errors import ConfigError, PromptError
from addiffusion_env.prompts import Prompt

Prompts = str | Prompt | Iterable["str | Prompt"]
Seeds = int | Iterable[int] | None


def listed(prompts: Prompts) -> list[str | Prompt]:
    """One prompt or an iterable of them as a list.

    Raises:
        PromptError: for any other type.
    """
    if isinstance(prompts, str | Prompt):
        return [prompts]
    if not isinstance(prompts, Iterable):
        raise PromptError(f"prompts must be text or a list of texts, got {type(prompts).__name__}", "pass its text")
    return list(prompts)


def make_jobs(
    prompts: Prompts, seeds: Seeds, images_per_prompt: int, read: Callable[[str], Prompt] = Prompt.of
) -> Iterator[Job]:
    """One job per image, prompt by prompt; checked immediately if the lengths are known, otherwise during iteration.

    Args:
        prompts: one prompt, or any iterable of prompts; consumed one by one.
        seeds: one per image (prompt by prompt); or a number ``s``, for images ``s``, ``s + 1``, ... of every prompt;
            ``None`` means 0.
        images_per_prompt: images of each prompt.
        read: converts a text to a prompt.

    Raises:
        PromptError: for an empty list, or a prompt that is not text.
        ConfigError: for fewer than one image per prompt, seeds that are not integers, or a number of seeds other than
            one per image.

    >>> [(job.index, job.prompt.text, job.seed) for job in make_jobs(["a", "b"], 7, 2)]
    [(0, 'a', 7), (1, 'a', 8), (2, 'b', 7), (3, 'b', 8)]
    """
    if not isinstance(images_per_prompt, int) or images_per_prompt < 1:
        raise ConfigError(f"num_images_per_prompt must be at least 1, got {images_per_prompt!r}", "use 1")
    single = seeds is None or not isinstance(seeds, Iterable) or getattr(seeds, "ndim", 1) == 0  # a 0-d array
    if isinstance(prompts, str | Sequence) or not isinstance(prompts, Iterable):
        prompts = listed(prompts)
        if not prompts:
            raise PromptError("no prompts were given", "pass at least one")
        for prompt in prompts:
            Prompt.of(prompt)
        if not single and hasattr(seeds, "__len__"):
            if len(seeds) != len(prompts) * images_per_prompt:  # type: ignore[arg-type]
                each = f" of {images_per_prompt} images each" if images_per_prompt > 1 else ""
                given = f"{len(seeds)} seeds for {len(prompts)} prompts{each}"  # type: ignore[arg-type]
                raise ConfigError(given, "give one seed per image, or one number")
            seeds = [_seed(seed) for seed in seeds]  # type: ignore[union-attr]
    if single:
        first = 0 if seeds is None else _seed(seeds)
        drawn: Iterator[Any] = (first + index % images_per_prompt for index in count())
    else:
        drawn = iter(seeds)  # type: ignore[arg-type]
    return _jobs(prompts, drawn, images_per_prompt, read)


def _jobs(
    prompts: Iterable[str | Prompt], seeds: Iterator[Any], images_per_prompt: int, read: Callable[[str], Prompt]
) -> Iterator[Job]:
    index = 0
    for given in prompts:
        prompt = read(given) if isinstance(given, str) else Prompt.of(given)
        for _ in range(images_per_prompt):
            seed = next(seeds, None)
            if seed is None:
                raise ConfigError(
                    f"the seeds ended after {index} images, but there are more prompts", "give one per image"
                )
            yield Job(index, prompt, _seed(seed))
            index += 1


def _seed(seed: Any) -> int:
    try:
        return operator.index(seed)
    except TypeError as error:
        raise ConfigError(
            f"a seed must be a whole number, got {type(seed).__name__}",
            "noise is keyed by prompt and seed: pass seeds=[0, 1, ...] instead of torch generators",
        ) from error
