"""Stage preference: a small BLIP that ranks images of a prompt; corresponds to ImageReward (Xu et al., 2023).

It is trained with a ranking loss on hard negatives. For each scene a contradicting twin is drawn (a relation inverted;
a colour, count or class changed): of the four pairings of two images and two prompts the matching ones must score
higher, and a clean image must score higher than its degraded version. No detector is involved, so that the detector
remains an independent judge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from transformers import BlipConfig, BlipForImageTextRetrieval

from addiffusion_env.prompts.emoji_grammar import Group, Scene, caption, sample_scene, task_of
from addiffusion_env.prompts.emoji_vocabulary import CLASSES, COLORS, IMAGE_SIZE, MAX_OBJECTS
from addiffusion_lab.emoji_training.config import TrainConfig, TrainReport
from addiffusion_lab.emoji_training.data import MAX_TOKENS, augment, degrade, draw_chunks, load_tokenizer, tokenize
from addiffusion_lab.emoji_training.layouts import layout
from addiffusion_lab.emoji_training.run import Run, save_transformer

WIDTH = 160
_STANDARDISED = 1024  # number of matching and of mismatched pairs for mean and standard deviation


# ------------------------------------------------------------------------------------------------ twins


def twin(scene: Scene, rng: np.random.Generator) -> Scene:
    """A minimally changed scene that contradicts this one, with its prompt."""
    changes: list[Callable[[Scene, np.random.Generator], Scene]] = [_change_class]
    if scene.relation is not None:
        changes += [_change_relation] * 4
    if any(group.color for group in scene.groups):
        changes += [_change_color] * 2
    if len(scene.groups) == 2 and len({0, *(group.color for group in scene.groups)}) == 3:
        changes += [_swap_colors] * 2
    if any(group.count > 1 for group in scene.groups):
        changes += [_change_count] * 3
    changed = changes[rng.integers(len(changes))](scene, rng)
    text = caption(changed.groups, changed.relation, rng)
    return Scene(task_of(changed.groups, changed.relation), changed.groups, changed.relation, text)


def _with_group(scene: Scene, index: int, group: Group) -> Scene:
    return replace(scene, groups=(*scene.groups[:index], group, *scene.groups[index + 1 :]))


def _pick(candidates: list[int], rng: np.random.Generator) -> int:
    return candidates[rng.integers(len(candidates))]


def _change_relation(scene: Scene, rng: np.random.Generator) -> Scene:
    """Usually inverts the relation, sometimes changes its axis."""
    assert scene.relation is not None
    converse = rng.random() < 0.75
    other_axis = 2 * (1 - scene.relation // 2) + int(rng.integers(2))
    return replace(scene, relation=scene.relation ^ 1 if converse else other_axis)


def _change_color(scene: Scene, rng: np.random.Generator) -> Scene:
    index = _pick([i for i, group in enumerate(scene.groups) if group.color], rng)
    group = scene.groups[index]
    color = int((group.color - 1 + rng.integers(1, len(COLORS))) % len(COLORS)) + 1
    return _with_group(scene, index, replace(group, color=color))


def _swap_colors(scene: Scene, rng: np.random.Generator) -> Scene:
    first, second = scene.groups
    return replace(scene, groups=(replace(first, color=second.color), replace(second, color=first.color)))


def _change_count(scene: Scene, rng: np.random.Generator) -> Scene:
    """Removes one object, or adds one if there is room."""
    index = _pick([i for i, group in enumerate(scene.groups) if group.count > 1], rng)
    group = scene.groups[index]
    change = _pick([-1, 1] if scene.object_count < MAX_OBJECTS else [-1], rng)
    return _with_group(scene, index, replace(group, count=group.count + change))


def _change_class(scene: Scene, rng: np.random.Generator) -> Scene:
    index = int(rng.integers(len(scene.groups)))
    used = {group.cls for group in scene.groups}
    cls = _pick([cls for cls in range(len(CLASSES)) if cls not in used], rng)
    return _with_group(scene, index, replace(scene.groups[index], cls=cls))


class PairBank(NamedTuple):
    """Scenes and their twins: token ids (N, 32) and layouts (N, 4, 5) of each."""

    tokens: torch.Tensor
    layouts: torch.Tensor
    twin_tokens: torch.Tensor
    twin_layouts: torch.Tensor


def _draw_pairs(count: int, seed: int) -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    twins = [twin(scene, rng) for scene in scenes]
    layouts, twin_layouts = (np.stack([layout(scene, rng) for scene in side]) for side in (scenes, twins))
    return [scene.text for scene in scenes], layouts, [scene.text for scene in twins], twin_layouts


def _pair_bank(run: Run, tokenizer: Any) -> PairBank:
    parts = draw_chunks(_draw_pairs, run.config.scenes, run.config.seed, run.stage, run.config.workers)
    banks = []
    for texts_at, layouts_at in ((0, 1), (2, 3)):
        texts = [text for part in parts for text in part[texts_at]]
        banks.append(tokenize(tokenizer, texts).to(run.device))
        banks.append(torch.from_numpy(np.concatenate([part[layouts_at] for part in parts])).to(run.device))
    return PairBank(*banks)


# ------------------------------------------------------------------------------------------------ the scorer


def build_model(tokenizer: Any) -> Any:
    """The untrained ``BlipForImageTextRetrieval``, 2.0 M parameters."""
    tower = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4}
    vision = {**tower, "num_hidden_layers": 4, "image_size": IMAGE_SIZE, "patch_size": 8}
    text = {
        **tower,
        "num_hidden_layers": 3,
        "encoder_hidden_size": WIDTH,
        "vocab_size": tokenizer.vocab_size,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "sep_token_id": tokenizer.eos_token_id,
    }
    config = BlipConfig(vision_config=vision, text_config=text, projection_dim=64, image_text_hidden_size=64)
    return BlipForImageTextRetrieval(config)


def raw_score(model: Any, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(B,) difference of the logits of "matches" and "does not match"."""
    # Padding repeats the end token: "at most one so far" keeps exactly the text and its end token.
    mask = (torch.cumsum(tokens == model.config.text_config.eos_token_id, 1) <= 1).long()
    logits = model(input_ids=tokens, pixel_values=images, attention_mask=mask, use_itm_head=True)[0].float()
    return logits[:, 1] - logits[:, 0]


def ranking_loss(
    matched: torch.Tensor, crossed: torch.Tensor, twin_matched: torch.Tensor, twin_crossed: torch.Tensor
) -> torch.Tensor:
    """Mean logistic loss of the four comparisons between a scene and its twin.

    Args:
        matched: (B,) score of the scene's image under its prompt.
        crossed: (B,) score of the scene's image under the twin's prompt.
        twin_matched: (B,) score of the twin's image under the twin's prompt.
        twin_crossed: (B,) score of the twin's image under the scene's prompt.
    """
    margins = (matched - crossed, twin_matched - twin_crossed, matched - twin_crossed, twin_matched - crossed)
    return torch.stack([F.softplus(-margin).mean() for margin in margins]).mean()


def train_preference(config: TrainConfig) -> TrainReport:
    """Writes ``image_reward/``, with ``score_mean`` and ``score_std`` for standardisation in its config.

    Raises:
        WeightsError: when stage tokenizer was not run.
    """
    run = Run("preference", config)
    tokenizer = load_tokenizer(config)
    bank = _pair_bank(run, tokenizer)
    with run.initial_weights():
        model = build_model(tokenizer).to(run.device)
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, weight_decay=0.03)
    for _ in run.clock(optimizer):
        chosen = run.pick(len(bank.tokens))
        own, other = bank.tokens[chosen], bank.twin_tokens[chosen]
        clean, twins = run.render(bank.layouts[chosen]), run.render(bank.twin_layouts[chosen])
        image, twin_image = (augment(clean_or_twin, run.generator, 0.5) for clean_or_twin in (clean, twins))
        worse = degrade(clean, run.generator)
        images = torch.cat([image, image, twin_image, twin_image, worse])
        with run.autocast():
            scores = raw_score(model, images, torch.cat([own, other, other, own, own]))
        matched, crossed, twin_matched, twin_crossed, degraded = scores.split(config.batch)
        ranking = ranking_loss(matched, crossed, twin_matched, twin_crossed)
        fidelity = F.softplus(degraded - matched).mean()
        loss = ranking + 0.5 * fidelity + 1e-3 * scores.pow(2).mean()
        accuracy = (matched > twin_crossed).float().mean()
        run.update(optimizer, loss, model.parameters(), image_accuracy=accuracy)
    mean, std = _standardisation(run, model.eval(), bank)
    model.config.score_mean, model.config.score_std = mean, std
    folder = config.out / "image_reward"
    save_transformer(model, folder)
    return run.report(folder, image_accuracy=float(accuracy), score_mean=mean, score_std=std)


@torch.no_grad()
def _standardisation(run: Run, model: Any, bank: PairBank) -> tuple[float, float]:
    """Mean and standard deviation of the raw score over matching pairs and equally many images of twins."""
    tokens = bank.tokens[:_STANDARDISED]
    images = [run.render(layouts[:_STANDARDISED]) for layouts in (bank.layouts, bank.twin_layouts)]
    scores = torch.cat(
        [
            raw_score(model, part, ids)
            for group in images
            for part, ids in zip(group.split(256), tokens.split(256), strict=True)
        ]
    )
    return float(scores.mean()), float(scores.std())
