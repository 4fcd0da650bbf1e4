"""Trains every model of the emoji world.

``python -m addiffusion_lab.emoji_training STAGE --out FOLDER``; ``--help`` lists the stages and their settings.
"""

from __future__ import annotations

from addiffusion_env.registry import Registry

_HERE = "addiffusion_lab.emoji_training"

# In an order that can be run from an empty folder: each stage reads only the outputs of earlier ones.
STAGES = Registry(
    "training stage",
    {
        "tokenizer": f"{_HERE}.tokenizer:train_tokenizer",
        "vae": f"{_HERE}.autoencoder:train_vae",
        "vae_decoder": f"{_HERE}.autoencoder:train_vae_decoder",
        "preview": f"{_HERE}.autoencoder:train_preview",
        "unet": f"{_HERE}.latent_diffusion:train_unet",
        "clip": f"{_HERE}.contrastive:train_clip",
        "dino": f"{_HERE}.distillation:train_dino",
        "detector": f"{_HERE}.detection:train_detector",
        "preference": f"{_HERE}.preference:train_preference",
        "objects": f"{_HERE}.objects:train_objects",
    },
)
