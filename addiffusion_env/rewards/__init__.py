"""Named reward terms, their weighted sum, and presets. A new term is one file and one line here."""

from addiffusion_env.registry import Registry

TERMS = Registry(
    "reward term",
    {
        "clip_gain": "addiffusion_env.rewards.gains:ClipGain",
        "preference_gain": "addiffusion_env.rewards.gains:PreferenceGain",
        "dino_stability": "addiffusion_env.rewards.dino_stability:DinoStability",
        "nfe_price": "addiffusion_env.rewards.nfe_price:NfePrice",
        "terminal_bonus": "addiffusion_env.rewards.terminal_bonus:TerminalBonus",
    },
)
