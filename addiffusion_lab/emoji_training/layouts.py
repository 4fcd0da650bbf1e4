"""Layouts of scenes: where the sprites lie that the renderer draws.

Sampling is identical to that of the training data of the shipped weights: a seed gives the same scenes and layouts.
"""

from __future__ import annotations

import numpy as np

from addiffusion_env.prompts.emoji_grammar import Scene, sample_scene
from addiffusion_env.prompts.emoji_vocabulary import IMAGE_SIZE, MAX_OBJECTS

Centres = list[tuple[float, float]]


def layout(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Places a scene's sprites so that its prompt is true of them and none hides another.

    Returns:
        (MAX_OBJECTS, 5) float32 of class, colour, centre x, centre y and size (pixels); rows of -1 are empty.
    """
    objects = [(group.cls, group.color) for group in scene.groups for _ in range(group.count)]
    count = len(objects)
    if count == 1:
        centres, sizes = _place_one(rng)
    elif count == 2:
        centres, sizes = _place_two(scene.relation, rng)
    elif count == 3 and rng.random() < 0.4:
        centres, sizes = _place_row(rng)
    else:
        sizes = list(rng.uniform(20, 28, count))
        cells = [(17, 17), (47, 17), (17, 47), (47, 47)]
        chosen = rng.permutation(4)[:count]
        centres = [(cells[i][0] + _jitter(2.5, rng), cells[i][1] + _jitter(2.5, rng)) for i in chosen]
    rows = np.full((MAX_OBJECTS, 5), -1, np.float32)
    for index, ((cls, color), (x, y), size) in enumerate(zip(objects, centres, sizes, strict=True)):
        rows[index] = (cls, color, x, y, size)
    return rows


def _jitter(span: float, rng: np.random.Generator) -> float:
    return rng.uniform(-span, span)


def _place_one(rng: np.random.Generator) -> tuple[Centres, list[float]]:
    size = rng.uniform(28, 46)
    margin = size / 2 + 1
    return [(rng.uniform(margin, IMAGE_SIZE - margin), rng.uniform(margin, IMAGE_SIZE - margin))], [size]


def _place_two(relation: int | None, rng: np.random.Generator) -> tuple[Centres, list[float]]:
    """Far apart along the relation's axis (a random axis without a relation), random along the other."""
    axis = relation // 2 if relation is not None else int(rng.integers(2))
    sizes = list(rng.uniform(22, 30, 2))
    near, far = 16.5 + _jitter(2, rng), 47.5 + _jitter(2, rng)
    one, other = 32 + _jitter(13, rng), 32 + _jitter(13, rng)
    centres = [(near, one), (far, other)] if axis == 0 else [(one, near), (other, far)]
    first_is_near = rng.random() < 0.5 if relation is None else relation % 2 == 0
    return (centres if first_is_near else centres[::-1]), sizes


def _place_row(rng: np.random.Generator) -> tuple[Centres, list[float]]:
    """Three in a row or a column, in random order."""
    sizes = list(rng.uniform(17.5, 20.5, 3))
    axis = rng.integers(2)
    across = [32 + _jitter(14, rng) for _ in range(3)]
    along = [11 + _jitter(1, rng), 32 + _jitter(1, rng), 53 + _jitter(1, rng)]
    order = rng.permutation(3)
    return [(along[i], across[i]) if axis == 0 else (across[i], along[i]) for i in order], sizes


def sample_scenes(count: int, seed: int) -> tuple[list[Scene], np.ndarray]:
    """Draws scenes and their layouts from one seed.

    Returns:
        ``count`` scenes, and their (count, MAX_OBJECTS, 5) float32 layouts (see :func:`layout`).
    """
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    layouts = [layout(scene, rng) for scene in scenes]
    return scenes, np.stack(layouts) if layouts else np.zeros((0, MAX_OBJECTS, 5), np.float32)
