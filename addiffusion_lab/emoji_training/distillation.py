"""Stage dino: image features without labels, by self-distillation (Caron et al., 2021, arXiv:2104.14294).

The student's output for one crop of an image must predict the teacher's output for another crop, over 1,024 prototypes;
the teacher is the student's moving average, with output centred and sharpened to prevent collapse.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model

from addiffusion_env.prompts.emoji_vocabulary import IMAGE_SIZE
from addiffusion_lab.emoji_training.config import TrainConfig, TrainReport
from addiffusion_lab.emoji_training.data import augment, scene_bank
from addiffusion_lab.emoji_training.run import Run, save_transformer

PROTOTYPES = 1024
WIDTH = 96
STUDENT_TEMPERATURE = 0.1
TEACHER_PULL = 0.004
"""Weight of the student in the teacher's moving average at each step."""


def teacher_temperature(progress: float) -> float:
    """0.04, increasing to 0.06 over the first fifth of the budget: a warm-up against collapse."""
    return 0.04 + 0.02 * min(1.0, 5 * progress)


def build_network() -> nn.ModuleDict:
    """The backbone (``"backbone"``), which is saved, and the projection head (``"head"``), which is discarded."""
    config = Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4, image_size=IMAGE_SIZE, patch_size=8, mlp_ratio=3
    )
    head = nn.Sequential(nn.Linear(WIDTH, 256), nn.GELU(), nn.Linear(256, 64))
    return nn.ModuleDict({"backbone": Dinov2Model(config), "head": head})


def _project(network: nn.ModuleDict, images: torch.Tensor) -> torch.Tensor:
    """(B, 64) unit vectors."""
    return F.normalize(network["head"](network["backbone"](images).pooler_output), dim=-1)


def random_crop(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random square crop of 0.65 to 1 times the side, resized to the original size; (B, 3, H, W)."""
    count, device = len(images), images.device
    side = torch.rand(count, device=device, generator=generator) * 0.35 + 0.65
    shift = torch.rand(count, 2, device=device, generator=generator) * 2 - 1
    transform = torch.zeros(count, 2, 3, device=device)
    transform[:, 0, 0] = transform[:, 1, 1] = side
    transform[:, :, 2] = shift * (1 - side)[:, None]
    grid = F.affine_grid(transform, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="reflection")


def train_dino(config: TrainConfig) -> TrainReport:
    """Writes ``dino/``: the teacher's backbone."""
    run = Run("dino", config)
    with run.initial_weights():
        student = build_network().to(run.device)
        teacher = build_network().to(run.device).requires_grad_(False)
        prototypes = nn.Linear(64, PROTOTYPES, bias=False).to(run.device)  # shared, normalised when used
    teacher.load_state_dict(student.state_dict())
    layouts = scene_bank(config, run.stage, run.device).layouts
    learned = [*student.parameters(), *prototypes.parameters()]
    optimizer = torch.optim.AdamW(learned, config.lr, weight_decay=0.04)
    centre = torch.zeros(PROTOTYPES, device=run.device)
    entropy = torch.zeros(())
    for tick in run.clock(optimizer):
        scenes = layouts[run.pick(len(layouts))]
        # Each view has a different background: features should describe the objects, not the background.
        views = [random_crop(augment(run.render(scenes), run.generator, 2.0), run.generator) for _ in range(2)]
        with torch.no_grad(), run.autocast():
            directions = F.normalize(prototypes.weight, dim=1).float()
            logits = [_project(teacher, view).float() @ directions.T for view in views]
            temperature = teacher_temperature(tick.progress)
            targets = [((logit - centre) / temperature).softmax(-1) for logit in logits]
            centre = centre.lerp(torch.cat(logits).mean(0), 0.1)
        with run.autocast():
            projected = [_project(student, view) for view in views]
        directions = F.normalize(prototypes.weight, dim=1)
        predicted = [F.log_softmax(item.float() @ directions.T / STUDENT_TEMPERATURE, -1) for item in projected]
        loss = -((targets[0] * predicted[1]).sum(-1).mean() + (targets[1] * predicted[0]).sum(-1).mean()) / 2
        entropy = torch.special.entr(targets[0]).sum(-1).mean()
        run.update(optimizer, loss, student.parameters(), max_norm=3.0, entropy=entropy)
        with torch.no_grad():
            for mean, parameter in zip(teacher.parameters(), student.parameters(), strict=True):
                mean.lerp_(parameter, TEACHER_PULL)
    folder = config.out / "dino"
    save_transformer(teacher["backbone"], folder)
    return run.report(folder, teacher_entropy=float(entropy))
