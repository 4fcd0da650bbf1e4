"""Stage objects: reads a picture's objects, and joins the rule of its prompt with the preference into one score.

The reader learns where objects are and of which class and colour they are, from renders and from renders that the
denoiser has redrawn (:mod:`.redrawing`). The two weights of the joint score and its scale come from redrawn pictures
that it was not trained on, under prompts that they match and contradict. No detector is involved.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from addiffusion_env.backbones.base import Load
from addiffusion_env.backbones.emoji import EmojiBackbone
from addiffusion_env.backbones.emoji.objects import STRIDE, Maps, ObjectReader, candidates, scene_logits
from addiffusion_env.errors import ConfigError
from addiffusion_env.prompts import Prompt, stable_hash
from addiffusion_env.prompts.emoji_grammar import Scene, parse
from addiffusion_env.prompts.emoji_vocabulary import CLASSES, COLORS, IMAGE_SIZE, MAX_OBJECTS
from addiffusion_env.scorers.emoji import SUREST, BlipPreferenceScorer
from addiffusion_env.scorers.regressions import logistic
from addiffusion_lab.claims.calibration import auc as auc_of
from addiffusion_lab.emoji_training.config import TrainConfig, TrainReport
from addiffusion_lab.emoji_training.data import augment, scene_bank
from addiffusion_lab.emoji_training.preference import twin
from addiffusion_lab.emoji_training.redrawing import (
    CHUNK,
    STARTS,
    Redrawer,
    Redrawn,
    added,
    changed,
    dropped,
    miscounted,
    redrawn_bank,
    with_caption,
)
from addiffusion_lab.emoji_training.run import Run, earlier, restore_checkpoint, save_state, write_checkpoint

GRID = IMAGE_SIZE // STRIDE
HELD_OUT = 8
"""One redrawn picture in so many is not trained on: those fit the joint score."""

FREE = 0.3
"""Share of the renders whose layout is free: classes repeat, objects lie anywhere and up to five of them."""

TWINS = 3
"""Prompts of each redrawn picture for the rule's loss, beside the one that it was redrawn under."""

RULE_WEIGHT = 0.25
EMA_DECAY = 0.998
CHECKPOINT = "objects_checkpoint.pt"
CHECKPOINT_EVERY = 200


class Targets(NamedTuple):
    """Training targets on the reader's grid.

    Attributes:
        objects: (B, 16, 16) 1 in the cell of a centre, a Gaussian around it.
        classes: (B, 16, 16) class of the nearest object.
        colors: (B, 16, 16) its colour.
    """

    objects: torch.Tensor
    classes: torch.Tensor
    colors: torch.Tensor


def targets_of(layouts: torch.Tensor) -> Targets:
    """Targets of (B, n, 5) layouts; the Gaussian's width is proportional to the sprite, at least 0.8 cells."""
    cls, color, x, y, size = (value[..., None, None] for value in layouts.unbind(2))
    centres = torch.arange(GRID, device=layouts.device) + 0.5
    columns, rows = centres - x / STRIDE, centres[:, None] - y / STRIDE
    width = (size / 20).clamp_min(0.8)
    bumps = torch.exp(-(columns.square() + rows.square()) / (2 * width.square()))
    here = (columns.abs() <= 0.5) & (rows.abs() <= 0.5)
    bumps = torch.where(cls >= 0, torch.where(here, 1.0, bumps), 0.0)
    objects, nearest = bumps.max(1)
    classes, colors = (value.flatten(1).clamp_min(0).long().gather(1, nearest.flatten(1)) for value in (cls, color))
    return Targets(objects, classes.view_as(nearest), colors.view_as(nearest))


def reading_loss(maps: Maps, target: Targets) -> dict[str, torch.Tensor]:
    """Cross-entropies per object: of the centres, and of class and colour around them, weighted by the Gaussian."""
    weight = target.objects * (target.objects > 0.5)
    total = weight.sum().clamp_min(1)
    centres = F.binary_cross_entropy_with_logits(maps.objects[:, 0], target.objects, reduction="sum")
    entropy = (target.objects * target.objects.clamp_min(1e-6).log()).sum()  # the least value, of soft targets
    others = (1 - target.objects).clamp_min(1e-6)
    least = -entropy - (others * others.log()).sum()
    classes = F.cross_entropy(maps.classes, target.classes, reduction="none")
    colors = F.cross_entropy(maps.colors, target.colors, reduction="none")
    sums = {"centres": centres - least, "classes": (classes * weight).sum(), "colors": (colors * weight).sum()}
    return {name: value / total for name, value in sums.items()}


def rule_loss(maps: Maps, scenes: Sequence[Scene], right: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of "this picture is what the scene asks for", by the rule from end to end."""
    return F.binary_cross_entropy_with_logits(scene_logits(candidates(maps), scenes), right)


def free_layouts(count: int, rng: np.random.Generator) -> torch.Tensor:
    """(count, 5, 5) layouts of one to five objects that overlap little; classes and colours repeat."""
    rows = np.full((count, MAX_OBJECTS + 1, 5), -1, np.float32)
    for row in rows:
        number = int(rng.integers(1, MAX_OBJECTS + 2))
        low, high = (24, 46) if number == 1 else (17, 32 - 2 * number)
        kinds = rng.integers(len(CLASSES), size=2)
        placed = 0
        for _ in range(8 * number):
            size = rng.uniform(low, high)
            x, y = rng.uniform(size / 2 - 2, IMAGE_SIZE - size / 2 + 2, 2)
            near = np.hypot(row[:placed, 2] - x, row[:placed, 3] - y) < 0.45 * (row[:placed, 4] + size)
            if near.any():
                continue
            cls = kinds[rng.integers(2)] if rng.random() < 0.5 else rng.integers(len(CLASSES))
            color = rng.integers(1 + len(COLORS)) if rng.random() < 0.6 else 0
            row[placed] = cls, color, x, y, size
            placed += 1
            if placed == number:
                break
    return torch.from_numpy(rows)


def shifted(images: torch.Tensor, layouts: torch.Tensor, most: int, run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch moved by up to ``most`` pixels, with its border repeated; and its layouts."""
    moves = torch.randint(-most, most + 1, (2,), device=run.device, generator=run.generator)
    right, down = moves.tolist()
    padded = F.pad(images, (most,) * 4, mode="replicate")
    top, left = most - down, most - right
    moved = layouts.clone()
    moved[..., 2] += right
    moved[..., 3] += down
    return padded[..., top : top + IMAGE_SIZE, left : left + IMAGE_SIZE], moved


def train_objects(config: TrainConfig) -> TrainReport:
    """Writes ``objects/``: the reader, and in its config the joint score's weights and scale.

    The redrawn pictures are kept in ``redrawn/`` and the state of the training in a checkpoint, which ``resume``
    continues from. The metrics are AUCs of matching against contradicting pairs of held-out redrawn pictures.

    Raises:
        WeightsError: when the model that redraws or stage preference is missing.
        ResumeError: when ``resume`` finds no checkpoint.
    """
    run = Run("objects", config)
    preference = BlipPreferenceScorer.from_pretrained(earlier(config, "image_reward", "preference"), device=run.device)
    earlier(config, "unet", "unet")
    backbone = EmojiBackbone.from_pretrained(Load(name_or_path=str(config.out), device=str(run.device)))
    redrawn = redrawn_bank(Redrawer(backbone), config.redrawn, config.out / "redrawn", config.seed)
    run.say(f"{len(redrawn.texts)} redrawn pictures")
    training = _Training(run, redrawn)
    if config.resume:
        training.load()
    for _ in run.clock(training.optimizer, warm=0.05, tail=0.6):
        training.update()
    training.save()
    reader = training.average.module.eval()
    assert isinstance(reader, ObjectReader)
    fitted = fit_joint(run, reader, preference, redrawn)
    folder = config.out / "objects"
    save_state(reader, folder)
    text = {"score_weights": fitted.weights, "score_mean": fitted.mean, "score_std": fitted.std}
    (folder / "config.json").write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
    return run.report(folder, **fitted.auc)


class _Training:
    """State of the training: the reader, its moving average and the optimiser."""

    def __init__(self, run: Run, redrawn: Redrawn) -> None:
        self.run, self.path = run, run.config.out / CHECKPOINT
        with run.initial_weights():
            self.reader = ObjectReader().to(run.device)
        self.average = AveragedModel(self.reader, avg_fn=_averaged, use_buffers=True)
        self.optimizer = torch.optim.AdamW(self.reader.parameters(), run.config.lr, weight_decay=0.02)
        rng = np.random.default_rng(stable_hash("emoji objects", run.config.seed))
        kept = np.arange(len(redrawn.texts)) % HELD_OUT != 0
        self.images = torch.from_numpy(redrawn.images[kept])
        self.layouts = torch.from_numpy(redrawn.layouts[kept]).to(run.device)
        self.asked: list[list[tuple[Scene, bool]]] = []
        for row in np.flatnonzero(kept):
            scene, holds = _asked(redrawn, int(row))
            others = [_contradiction(scene, rng) for _ in range(TWINS)]
            self.asked.append([(scene, holds), *((other, shows(redrawn.layouts[row], other)) for other in others)])
        self.rng = rng
        scenes = scene_bank(run.config, run.stage, run.device).layouts
        count = int(len(scenes) * FREE)
        self.scenes = F.pad(scenes, (0, 0, 0, 1), value=-1.0)
        self.scenes[:count] = free_layouts(count, rng).to(run.device)

    def update(self) -> None:
        """One step: half of the batch are renders, half redrawn pictures."""
        run, config = self.run, self.run.config
        half = max(1, config.batch // 2)
        drawn = self.scenes[run.pick(len(self.scenes))[:half]]
        at = run.pick(len(self.images))[:half]
        images = self.images[at.cpu()].to(run.device).float() / 127.5 - 1
        moved, layouts = shifted(images, self.layouts[at], 4, run)
        batch = augment(torch.cat([run.render(drawn), moved]), run.generator)
        layouts = torch.cat([drawn, F.pad(layouts, (0, 0, 0, 1), value=-1.0)])
        with run.autocast():
            maps = self.reader(batch)
        maps = Maps(*(value.float() for value in maps))
        parts = reading_loss(maps, targets_of(layouts))
        asked = [self.asked[row][self.rng.integers(1 + TWINS) if self.rng.random() < 0.5 else 0] for row in at.tolist()]
        right = torch.tensor([float(holds) for _, holds in asked], device=run.device)
        rule = rule_loss(Maps(*(value[half:] for value in maps)), [scene for scene, _ in asked], right)
        loss = torch.stack(list(parts.values())).sum() + RULE_WEIGHT * rule
        run.update(self.optimizer, loss, self.reader.parameters(), 5.0, **parts, rule=rule)
        self.average.update_parameters(self.reader)
        if run.steps % CHECKPOINT_EVERY == 0:
            self.save()

    def save(self) -> None:
        """Writes the checkpoint."""
        parts = ("reader", "average", "optimizer")
        write_checkpoint(self.path, {name: getattr(self, name).state_dict() for name in parts})

    def load(self) -> None:
        """Restores the state of the checkpoint."""

        def restore(parts: dict[str, Any]) -> None:
            for name, state in parts.items():
                getattr(self, name).load_state_dict(state)

        restore_checkpoint(self.path, self.run.device, restore)


def _averaged(mean: torch.Tensor, value: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
    """Moving average, with larger weight of the value in the first steps."""
    if not mean.is_floating_point():  # the number of batches that the normalisation has seen
        return value
    return mean.lerp(value, 1 - min(EMA_DECAY, (1 + float(count)) / (10 + float(count))))


class Joint(NamedTuple):
    """The joint score ``weights . (preference, log-odds of the rule)``, standardised.

    Attributes:
        weights: of the preference and of the log-odds.
        mean: over matching and contradicting pairs.
        std: over the same.
        auc: of preference, rule and joint score on these pairs.
    """

    weights: list[float]
    mean: float
    std: float
    auc: dict[str, float]


@torch.no_grad()
def fit_joint(run: Run, reader: ObjectReader, preference: BlipPreferenceScorer, redrawn: Redrawn) -> Joint:
    """Fits the joint score by logistic regression on held-out pictures under the prompt that they were redrawn under.

    Only on those redrawn from the last step, whose content is certain, and which fail as the denoiser does.
    """
    scores, right = [], []
    for at in range(0, len(redrawn.texts), HELD_OUT):
        if redrawn.starts[at] != max(STARTS):
            continue
        image = torch.from_numpy(redrawn.images[at : at + 1]).to(run.device).float() / 127.5 - 1
        scene, holds = _asked(redrawn, at)
        liked = preference.score(image, [Prompt.of(scene.text)])
        rule = scene_logits(candidates(reader(image)), [scene]).clamp(-SUREST, SUREST)
        scores.append([float(liked), float(rule)])
        right.append(holds)
    if not scores:
        raise ConfigError(
            f"none of {len(redrawn.texts)} redrawn pictures is left to fit the score", f"give --redrawn {CHUNK}"
        )
    values, truth = np.array(scores), np.array(right, dtype=bool)
    inputs = np.c_[np.ones(len(values)), values]
    balance = np.where(truth, 0.5 / max(1, truth.sum()), 0.5 / max(1, (~truth).sum()))  # both outcomes alike
    weights = logistic(inputs, truth, np.zeros(3), 1e-3 * np.eye(3), steps=30, weight=balance)[1:]
    joint = values @ weights
    named = {"preference": values[:, 0], "rule": values[:, 1], "joint": joint}
    auc = {f"auc_{name}": float(np.nan_to_num(auc_of(value, truth), nan=0.5)) for name, value in named.items()}
    return Joint(weights.tolist(), float(joint.mean()), max(1e-3, float(joint.std())), auc)


def _asked(redrawn: Redrawn, row: int) -> tuple[Scene, bool]:
    """The scene of the prompt that a picture was redrawn under, and whether the picture shows it."""
    scene = parse(redrawn.texts[row])
    assert scene is not None  # redrawn under the grammar's prompts
    return scene, shows(redrawn.layouts[row], scene)


def _contradiction(scene: Scene, rng: np.random.Generator) -> Scene:
    """A scene with an object more or less, or a twin of the preference's training."""
    other = changed(scene, rng, (miscounted, dropped, added)) if rng.random() < 0.5 else None
    return twin(scene, rng) if other is None else with_caption(other, rng)


def shows(rows: np.ndarray, scene: Scene) -> bool:
    """Whether a layout's rows are exactly what a scene asks for."""
    rows = rows[rows[:, 0] >= 0]
    groups = [rows[rows[:, 0] == group.cls] for group in scene.groups]
    for group, own in zip(scene.groups, groups, strict=True):
        if len(own) != group.count or (group.color and (own[:, 1] != group.color).any()):
            return False
    if len(rows) != scene.object_count or scene.relation is None:
        return len(rows) == scene.object_count
    towards = (groups[1] - groups[0])[0, 2:4]
    return bool(towards[scene.relation // 2] * (1 - 2 * (scene.relation % 2)) > 0)
