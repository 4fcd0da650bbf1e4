"""Pictures as the denoiser draws them, with known content: renders noised to a level of the schedule and denoised.

This is SDEdit (Meng et al., 2022, arXiv:2108.01073). Under its own caption a picture keeps its content from every level
used here. Under a prompt that it contradicts it keeps number and place of its objects from the last level alone, and
class and colour not even from there; so only pictures that contradict their prompt in number or place are redrawn
under it, from the last level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from addiffusion_env import ENVIRONMENTS
from addiffusion_env.backbones.batches import Latents
from addiffusion_env.backbones.emoji import EmojiBackbone
from addiffusion_env.backbones.schedules import respace
from addiffusion_env.backbones.solvers import ddim_step
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.files import whole_file
from addiffusion_env.prompts import stable_hash
from addiffusion_env.prompts.emoji_grammar import Group, Scene, caption, sample_scene, task_of
from addiffusion_env.prompts.emoji_vocabulary import CLASSES, MAX_OBJECTS
from addiffusion_lab.emoji_training.layouts import layout
from addiffusion_lab.emoji_training.renderer import Renderer

CHUNK = 512
"""Pictures per file of a bank."""

STARTS = (3, 1, 3, 2)
"""Steps of the schedule from which renders are redrawn, one batch after the other."""

CONTRADICTED = 0.4
"""Share of the pictures from the last of :data:`STARTS` that are redrawn under a prompt which they contradict."""

Change = Callable[[Scene, np.random.Generator], Scene | None]


def miscounted(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """One object more or one less of a group that stays."""
    index = int(rng.integers(len(scene.groups)))
    group = scene.groups[index]
    changes = [-1] * (group.count > 1) + [1] * (scene.object_count < MAX_OBJECTS)
    if not changes:
        return None
    changed = replace(group, count=group.count + changes[rng.integers(len(changes))])
    return _with(scene, (*scene.groups[:index], changed, *scene.groups[index + 1 :]))


def dropped(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """One group less."""
    index = int(rng.integers(len(scene.groups)))
    kept = (*scene.groups[:index], *scene.groups[index + 1 :])
    return _with(scene, kept) if kept else None


def added(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """A single object of another class more."""
    if len(scene.groups) == 3 or scene.object_count == MAX_OBJECTS:
        return None
    others = sorted(set(range(len(CLASSES))) - {group.cls for group in scene.groups})
    return _with(scene, (*scene.groups, Group(1, others[rng.integers(len(others))])))


def turned(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """The converse relation, or one along the other axis."""
    if scene.relation is None:
        return None
    other_axis = 2 * (1 - scene.relation // 2) + int(rng.integers(2))
    return replace(scene, relation=scene.relation ^ 1 if rng.random() < 0.75 else other_axis)


STRUCTURAL: tuple[Change, ...] = (miscounted, dropped, turned)
"""Changes that survive the denoiser: under the unchanged prompt it does not draw the picture right again."""


def _with(scene: Scene, groups: tuple[Group, ...]) -> Scene:
    kept = [group.count for group in groups] == [group.count for group in scene.groups]
    relation = scene.relation if kept else None
    return replace(scene, task=task_of(groups, relation), groups=groups, relation=relation)


def changed(scene: Scene, rng: np.random.Generator, changes: Sequence[Change]) -> Scene | None:
    """The scene after the first of ``changes``, in random order, that is possible; its text is still the old one."""
    found = (changes[i](scene, rng) for i in rng.permutation(len(changes)))
    return next((other for other in found if other is not None), None)


def with_caption(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with a prompt of its own."""
    return replace(scene, text=caption(scene.groups, scene.relation, rng))


class Redrawn(NamedTuple):
    """Pictures with known content.

    Attributes:
        images: (N, 3, 64, 64) uint8.
        layouts: (N, 4, 5) of what was rendered, as :func:`.layout`.
        starts: (N,) step of the schedule that they were redrawn from.
        texts: N prompts that they were redrawn under.
    """

    images: np.ndarray
    layouts: np.ndarray
    starts: np.ndarray
    texts: list[str]


class Redrawer:
    """Redraws renders by the process of ``AdDiffusion-Emoji-v1``: its schedule, guidance and early exit.

    Args:
        backbone: the emoji world's model.
    """

    def __init__(self, backbone: EmojiBackbone) -> None:
        self.backbone = backbone
        self.renderer = Renderer(device=backbone.device)
        settings = EnvSettings.of(**ENVIRONMENTS["AdDiffusion-Emoji-v1"])
        self.process = settings.process(backbone.capabilities, backbone.name)

    @torch.no_grad()
    def __call__(
        self, images: torch.Tensor, texts: Sequence[str], start: int, generator: torch.Generator, early: bool
    ) -> torch.Tensor:
        """Noises images to the level after ``start`` steps and denoises them under ``texts``.

        Args:
            images: (B, 3, 64, 64) in [-1, 1].
            texts: B prompts.
            start: step of the schedule, 1 to the last decision.
            generator: of the noise.
            early: take the early exit at the first decision instead of the rest of the schedule.

        Returns:
            (B, 3, 64, 64) in [-1, 1].
        """
        backbone, vae = self.backbone, self.backbone.vae
        x0 = vae.encode(images.to(backbone.device, vae.dtype)).latent_dist.mode().float() * vae.config.scaling_factor
        levels = self._levels(start, early)
        noise = torch.randn(x0.shape, device=x0.device, generator=generator)
        sigma = _rows(levels[0], x0)
        latents = Latents.start(backbone.path.mix(x0, noise, sigma), sigma)
        conditioning = backbone.encode(list(texts))
        for level, following in zip(levels, levels[1:], strict=False):
            scale = torch.full((len(x0),), self.process.scale_at(float(level)))
            x0 = backbone.predict(latents.x, latents.sigma, conditioning, scale).x0
            latents = ddim_step(backbone.path, latents, x0, _rows(following, x0))
        return backbone.decode(latents.x)

    def _levels(self, start: int, early: bool) -> np.ndarray:
        levels = self.backbone.sigmas(self.process.steps, self.process.spacing)
        first = max(start, self.process.decision_steps[0])
        if not early:
            return levels[start:]
        positions = self.backbone.timestep_position(torch.from_numpy(levels[first:])).numpy().copy()
        positions[-1] = 0.0
        steps = min(int(self.process.early_exit_steps), len(levels) - first - 1)
        return np.concatenate([levels[start:first], respace(levels[first:], steps, positions)])

    def draw(self, count: int, seed: int, batch: int = 32) -> Redrawn:
        """``count`` pictures, some of them under a prompt that they contradict (:data:`CONTRADICTED`).

        Args:
            count: number of pictures.
            seed: of everything.
            batch: pictures per network call.
        """
        rng, batch = np.random.default_rng(seed), min(batch, count)
        generator = torch.Generator(self.backbone.device).manual_seed(seed)
        images: list[np.ndarray] = []
        layouts: list[np.ndarray] = []
        starts: list[int] = []
        texts: list[str] = []
        while len(texts) < count:
            start, early = STARTS[len(images) % len(STARTS)], bool(rng.random() < 0.5)
            contents, prompts = zip(*(_content(start, rng) for _ in range(batch)), strict=True)
            rows = np.stack([layout(content, rng) for content in contents])
            found = self(self.renderer(rows, generator), prompts, start, generator, early)
            images.append(((found.cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy())
            layouts.append(rows)
            starts += [start] * batch
            texts += prompts
        return Redrawn(
            np.concatenate(images)[:count], np.concatenate(layouts)[:count], np.array(starts[:count]), texts[:count]
        )


def redrawn_bank(redrawer: Redrawer, count: int, folder: Path, seed: int) -> Redrawn:
    """``count`` pictures, drawn in chunks that are kept in ``folder``, so that an interrupted run loses one at most."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for index in range(-(-count // CHUNK)):
        path = folder / f"{seed}-{index:03}.npz"
        if not path.is_file():
            found = redrawer.draw(min(CHUNK, count - index * CHUNK), stable_hash("emoji redrawn", seed, index))
            with whole_file(path) as file:
                np.savez(file, **found._asdict())
        with np.load(path) as data:
            parts.append(Redrawn(data["images"], data["layouts"], data["starts"], data["texts"].tolist()))
    images, layouts, starts = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return Redrawn(images, layouts, starts, [text for part in parts for text in part.texts])


def _content(start: int, rng: np.random.Generator) -> tuple[Scene, str]:
    """What a picture shows, and the prompt that it is redrawn under."""
    scene = sample_scene(rng)
    contradicted = start == max(STARTS) and rng.random() < CONTRADICTED
    if contradicted and (other := changed(scene, rng, STRUCTURAL)) is not None:
        return other, scene.text
    if rng.random() < 0.3 and (other := changed(scene, rng, (miscounted, added))) is not None:
        scene = with_caption(other, rng)  # counts beside other objects are rare in the grammar's own draws
    return scene, scene.text


def _rows(level: float, like: torch.Tensor) -> torch.Tensor:
    return torch.full((len(like),), float(level), dtype=torch.float64)
