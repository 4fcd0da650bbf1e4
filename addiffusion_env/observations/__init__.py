"""What the policy sees: from frames to Dict observations. A new observation is one class and one line here."""

from addiffusion_env.registry import Registry

FEATURES = Registry(
    "observation key",
    {
        "clip": "addiffusion_env.observations.features:Clip",
        "timestep": "addiffusion_env.observations.features:Timestep",
        "quality": "addiffusion_env.observations.features:Quality",
        "price": "addiffusion_env.observations.features:Price",
        "tries": "addiffusion_env.observations.features:Tries",
        "belief": "addiffusion_env.observations.features:Belief",
        "checked": "addiffusion_env.observations.features:Checked",
        "phrases": "addiffusion_env.observations.features:Phrases",
        "features": "addiffusion_env.observations.features:DenoiserFeatures",
        "spent": "addiffusion_env.observations.features:Spent",
        "prompt": "addiffusion_env.observations.features:PromptEmbedding",
    },
)
"""Key -> a subclass of :class:`~addiffusion_env.observations.features.Feature`."""
