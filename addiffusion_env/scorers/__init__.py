"""Picture and prompt in, number out: the scorers, by name. Listing them imports nothing heavy."""

from __future__ import annotations

from addiffusion_env.registry import Registry

SCORERS = Registry(
    "scorer",
    {
        "clip": "addiffusion_env.scorers.clip:ClipScorer",
        "image_reward": "addiffusion_env.scorers.image_reward:ImageRewardScorer",
        "image_reward_package": "addiffusion_env.scorers.image_reward_package:ImageRewardPackageScorer",
        "blip_preference": "addiffusion_env.scorers.blip_preference:BlipPreferenceScorer",
        "dino": "addiffusion_env.scorers.dino:DinoEmbedder",
        "hps": "addiffusion_env.scorers.hps:HpsScorer",
        "aesthetic": "addiffusion_env.scorers.aesthetic:AestheticScorer",
        "sharpness": "addiffusion_env.scorers.sharpness:SharpnessScorer",
        "emoji_detector": "addiffusion_env.scorers.emoji_detector:EmojiDetectorScorer",
    },
)
"""Name -> class. All have ``from_pretrained``; ``dino`` embeds pictures for similarity, the others score them."""
