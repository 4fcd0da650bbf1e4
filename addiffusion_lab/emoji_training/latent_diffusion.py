"""Stage unet: the latent diffusion model, UNet and text encoder together.

Epsilon prediction on Stable Diffusion 1.5's noise schedule, weighted by min-SNR with gamma 5 (Hang et al., 2023,
arXiv:2303.09556, section 3.4): the squared error of epsilon is weighted by min(SNR, 5) / SNR. One prompt in ten is
replaced by the empty prompt for classifier-free guidance. The saved weights are an exponential moving average.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from addiffusion_lab.emoji_training.autoencoder import load_vae
from addiffusion_lab.emoji_training.config import TrainConfig, TrainReport
from addiffusion_lab.emoji_training.data import MAX_TOKENS, load_tokenizer, scene_bank, tokenize
from addiffusion_lab.emoji_training.run import (
    Run,
    restore_checkpoint,
    save_diffuser,
    save_transformer,
    write_checkpoint,
)

TRAIN_TIMESTEPS = 1000
SNR_CAP = 5.0
EMPTY_PROMPTS = 0.1
EMA_DECAY = 0.9995
CHECKPOINT = "unet_checkpoint.pt"
CHECKPOINT_EVERY = 1000

_TEXT_WIDTH = 192


def build_models(tokenizer: Any) -> nn.ModuleDict:
    """The untrained 6.4 M UNet (``"unet"``) and 1.6 M text encoder (``"text_encoder"``)."""
    unet: Any = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=(64, 128),
        layers_per_block=2,
        cross_attention_dim=_TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=_TEXT_WIDTH,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            projection_dim=_TEXT_WIDTH,
        )
    )
    return nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})


def build_scheduler() -> Any:
    """Stable Diffusion 1.5's noise schedule, as a ``DDIMScheduler``."""
    return DDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def train_unet(config: TrainConfig) -> TrainReport:
    """Writes ``unet/``, ``text_encoder/`` and ``scheduler/``, and a checkpoint that ``resume`` continues from.

    A run that is to be resumed should not anneal (``anneal=False``); the last one should.

    Raises:
        WeightsError: when stage tokenizer or vae was not run.
        ResumeError: when ``resume`` finds no checkpoint, or one of a different model.
    """
    run = Run("unet", config)
    tokenizer = load_tokenizer(config)
    with run.initial_weights():
        models = build_models(tokenizer).to(run.device)
    models["unet"].to(memory_format=torch.channels_last)
    training = _Training(models, config)
    if config.resume:
        restore_checkpoint(config.out / CHECKPOINT, run.device, training.load)

    bank = scene_bank(config, run.stage, run.device)
    tokens = tokenize(tokenizer, bank.texts).to(run.device)
    empty = tokenize(tokenizer, [""]).to(run.device)
    latents = _encode_bank(run, bank.layouts)
    run.say(f"{len(latents)} latents, std {float(latents.float().std()):.3f}")

    network = torch.compile(models["unet"]) if config.compile else models["unet"]
    scheduler = build_scheduler()
    alphas = scheduler.alphas_cumprod.to(run.device)

    clock = run.clock(training.optimizer, warm=0.0 if config.resume else 0.02, tail=0.6)
    mean_loss = torch.tensor(float("nan"))
    for tick in clock:
        chosen = run.pick(len(latents))
        dropped = torch.rand(config.batch, 1, device=run.device, generator=run.generator) < EMPTY_PROMPTS
        ids = torch.where(dropped, empty, tokens[chosen])
        loss = _denoising_loss(run, network, models["text_encoder"], latents[chosen].float(), ids, alphas)
        mean_loss = loss.detach() if tick.step == 1 else mean_loss.lerp(loss.detach(), 0.01)
        run.update(training.optimizer, loss, models.parameters(), running=mean_loss)
        training.average_in()
        if tick.step % CHECKPOINT_EVERY == 0:
            training.save(config.out / CHECKPOINT)
    training.save(config.out / CHECKPOINT)

    training.use_average()
    save_diffuser(models["unet"], config.out / "unet")
    save_transformer(models["text_encoder"], config.out / "text_encoder")
    scheduler.save_pretrained(config.out / "scheduler")
    return run.report(config.out / "unet", running_loss=float(mean_loss), total_steps=training.step)


@torch.no_grad()
def _encode_bank(run: Run, layouts: torch.Tensor) -> torch.Tensor:
    """Renders and encodes every scene once: (N, 4, 16, 16) scaled latents, bfloat16 to save memory."""
    vae = load_vae(run).eval()
    parts = []
    for part in layouts.split(2048):
        with run.autocast():
            latents = vae.encode(run.render(part)).latent_dist.mode() * vae.config.scaling_factor
        parts.append(latents.to(torch.bfloat16))
    return torch.cat(parts)


def _denoising_loss(
    run: Run, unet: Any, text_encoder: nn.Module, latents: torch.Tensor, ids: torch.Tensor, alphas: torch.Tensor
) -> torch.Tensor:
    """Min-SNR weighted squared error of the predicted noise, at a random timestep per sample."""
    noise = torch.randn(latents.shape, device=run.device, generator=run.generator)
    timesteps = torch.randint(TRAIN_TIMESTEPS, (len(latents),), device=run.device, generator=run.generator)
    alpha = alphas[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    with run.autocast():
        states = text_encoder(ids)[0]
        predicted = unet(noisy, timesteps, encoder_hidden_states=states, return_dict=False)[0]
    snr = (alpha / (1 - alpha)).flatten()
    error = (predicted.float() - noise).pow(2).mean((1, 2, 3))
    return (error * snr.clamp(max=SNR_CAP) / snr).mean()


class _Training:
    """Training state of a checkpoint: models, optimiser and moving average."""

    def __init__(self, models: nn.ModuleDict, config: TrainConfig) -> None:
        self.models = models
        self.optimizer = torch.optim.AdamW(models.parameters(), config.lr, betas=(0.9, 0.99), weight_decay=0.01)
        self.average = [parameter.detach().clone() for parameter in models.parameters()]
        self.step = 0

    @torch.no_grad()
    def average_in(self) -> None:
        """Updates the moving average, with larger weight in the first steps."""
        self.step += 1
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        for mean, parameter in zip(self.average, self.models.parameters(), strict=True):
            mean.lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def use_average(self) -> None:
        """Copies the moving average into the models, for saving."""
        for mean, parameter in zip(self.average, self.models.parameters(), strict=True):
            parameter.copy_(mean)

    def save(self, path: Path) -> None:
        """Writes the checkpoint."""
        state = {"models": self.models.state_dict(), "optimizer": self.optimizer.state_dict()}
        write_checkpoint(path, {**state, "average": self.average, "step": self.step})

    def load(self, state: dict[str, Any]) -> None:
        """Restores the state of a checkpoint."""
        self.models.load_state_dict(state["models"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step = state["average"], state["step"]
