"""Named reward terms, their weighted sum, and presets. A new term is one file and one line here."""

from addiffusion_env.registry import Registry

TERMS = Registry(
    "reward term",
    {
        "clip_gain": "addiffusion_env.rewards.gains:clip_gain",
        "preference_gain": "addiffusion_env.rewards.gains:preference_gain",
        "dino_stability": "addiffusion_env.rewards.dino_stability:dino_stability",
        "nfe_price": "addiffusion_env.rewards.nfe_price:nfe_price",
        "terminal_bonus": "addiffusion_env.rewards.terminal_bonus:terminal_bonus",
    },
)
