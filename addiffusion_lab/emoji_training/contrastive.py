"""Stage clip: contrastive training of an image and a text tower on rendered scenes (Radford et al., 2021)."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch.nn import functional as F

from addiffusion_env.prompts.emoji_vocabulary import IMAGE_SIZE
from addiffusion_lab.emoji_training.config import TrainConfig, TrainReport
from addiffusion_lab.emoji_training.data import MAX_TOKENS, augment, load_tokenizer, scene_bank, tokenize
from addiffusion_lab.emoji_training.run import Run, save_state

MAX_LOGIT_SCALE = 100.0


def clip_config(tokenizer: Any) -> dict[str, Any]:
    """The model's ``open_clip_config.json``: keyword arguments of open_clip's ``CLIP``."""
    tower = {"layers": 4, "width": 192}
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": IMAGE_SIZE, **tower, "head_width": 48, "patch_size": 8},
        "text_cfg": {
            "context_length": MAX_TOKENS,
            "vocab_size": tokenizer.vocab_size,
            **tower,
            "heads": 4,
            "pad_id": tokenizer.pad_token_id,
        },
    }


def train_clip(config: TrainConfig) -> TrainReport:
    """Writes ``clip/``: ``open_clip_config.json`` and ``model.safetensors``.

    Raises:
        WeightsError: when stage tokenizer was not run.
    """
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    run = Run("clip", config)
    tokenizer = load_tokenizer(config)
    shape = clip_config(tokenizer)
    with run.initial_weights():
        towers = CLIPVisionCfg(**shape["vision_cfg"]), CLIPTextCfg(**shape["text_cfg"])
        model: Any = CLIP(shape["embed_dim"], *towers).to(run.device)
    bank = scene_bank(config, run.stage, run.device)
    tokens = tokenize(tokenizer, bank.texts).to(run.device)
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, weight_decay=0.05, betas=(0.9, 0.98))
    pairs = torch.arange(config.batch, device=run.device)
    for _ in run.clock(optimizer):
        chosen = run.pick(len(tokens))
        images = augment(run.render(bank.layouts[chosen]), run.generator)
        with run.autocast():
            image_features, text_features, scale = model(images, tokens[chosen])[:3]
        logits = scale.float() * image_features.float() @ text_features.float().T
        loss = (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
        accuracy = (logits.argmax(1) == pairs).float().mean()
        run.update(optimizer, loss, model.parameters(), accuracy=accuracy)
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(MAX_LOGIT_SCALE))
    folder = config.out / "clip"
    save_state(model, folder)
    (folder / "open_clip_config.json").write_text(json.dumps(shape), encoding="utf-8")
    return run.report(folder, batch_accuracy=float(accuracy))
