"""The emoji world's backbone, a small Stable Diffusion that ships with the package."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from addiffusion_env.backbones import Traits
from addiffusion_env.backbones.base import Capabilities, Load
from addiffusion_env.backbones.devices import quiet_loading, resolve_device, resolve_dtype, without_triton
from addiffusion_env.backbones.emoji.manifest import WEIGHTS, verify
from addiffusion_env.backbones.stable_diffusion import StableDiffusionBackbone, StableDiffusionParts
from addiffusion_env.errors import ConfigError, nearest

if TYPE_CHECKING:
    from addiffusion_env.backbones.openvino import OpenVino

OPTIONS = ("truncate_prompts", "engine")

SCORERS_ON = {
    "float32": "addiffusion_env.scorers.emoji:OpenVinoScorers",
    "bfloat16": "addiffusion_env.scorers.emoji:Bfloat16OpenVinoScorers",
}
"""Precision of the engine OpenVINO -> the scorers in it."""


class EmojiBackbone(StableDiffusionBackbone):
    """Emoji world: 64x64 images of up to four emoji, SD 1.5's architecture at small scale, no download.

    Trained from scratch by ``python -m addiffusion_lab.emoji_training``; ``weights/manifest.json`` has the details.
    """

    name = "emoji"
    not_identity = ("traits",)
    traits = Traits(
        prompts="emoji",
        prompt_reader="addiffusion_env.prompts.emoji_grammar:emoji_prompt",
        scorers="addiffusion_env.scorers.emoji:EmojiScorers",
        preference="emoji_preference",
        judges=("emoji_detector",),
        world="emoji",
        embedded=True,
        policy="emoji_rule",
        guide="addiffusion_env.backbones.emoji.guide:EmojiGuide",
    )

    @classmethod
    def from_pretrained(cls, load: Load | None = None) -> EmojiBackbone:
        """Loads the shipped weights, checking each file's sha256, or a folder of the same layout.

        Options: ``truncate_prompts``, and ``engine="openvino"``, which runs the UNet, both decoders and the scorers'
        image networks on OpenVINO, in ``dtype``, instead of torch.

        Raises:
            WeightsError: for a missing or corrupted file.
            UnknownNameError: for an unknown engine.
            ConfigError: for an option that this backbone does not have, or a dtype or device that the engine lacks.
            MissingPackageError: when the engine is not installed.
        """
        with without_triton():
            from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        load = load or Load()
        for option in load.options:
            if option not in OPTIONS:
                raise ConfigError(f"the emoji backbone has no option {option!r}", nearest(option, OPTIONS))
        folder = WEIGHTS if load.name_or_path is None else load.name_or_path
        engine: OpenVino | None = None
        if load.options.get("engine", "torch") != "torch":
            from addiffusion_env.backbones.openvino import engine_of

            engine = engine_of(load)
        device = resolve_device("cpu" if engine else load.device)
        dtype = torch.float32 if engine else resolve_dtype(load.dtype, device)

        def model(kind: type, component: str) -> torch.nn.Module:
            return kind.from_pretrained(verify(folder, component), torch_dtype=dtype).to(device)  # type: ignore[attr-defined]

        with quiet_loading():
            parts = StableDiffusionParts(
                unet=model(UNet2DConditionModel, "unet"),
                vae=model(AutoencoderKL, "vae"),
                text_encoder=model(CLIPTextModel, "text_encoder"),
                tokenizer=CLIPTokenizer.from_pretrained(verify(folder, "tokenizer")),
                scheduler=DDIMScheduler.from_pretrained(verify(folder, "scheduler")),
                preview=model(AutoencoderTiny, "preview"),
            )
        capabilities = Capabilities(
            latent_shape=(4, 16, 16),
            image_size=(64, 64),
            preview_size=(64, 64),
            guidance=True,
            attention_grid=(16, 16),
            max_tokens=32,
            default_steps=20,
            default_guidance=4.0,
            default_solver="ddim",
            default_spacing="trailing",
        )
        if device.type == "cpu":
            # CPU time on an AVX2 core, channels-last and otherwise: preview 8.0 and 10.4 ms, decode 29 and 33 ms, UNet
            # 35 and 35 ms, since half of its time goes into attention and its linear layers.
            for part in (parts.unet, parts.vae, parts.preview):
                part.to(memory_format=torch.channels_last)
        made = cls(parts, capabilities, bool(load.options.get("truncate_prompts", False)))
        if engine is not None:
            made._run_on(engine)
        return made

    def _run_on(self, engine: OpenVino) -> None:
        """Runs all but the text encoder on an engine from now on; converts the networks."""
        self.engine = engine
        self.traits = replace(self.traits, scorers=SCORERS_ON[engine.dtype])  # type: ignore[misc]
        x0 = torch.zeros(1, *self.capabilities.latent_shape)
        self.predict(x0, torch.ones(1, dtype=torch.float64), self.encode([""]), torch.ones(1, dtype=torch.float64))
        self.preview(x0)
        self.decode(x0)
