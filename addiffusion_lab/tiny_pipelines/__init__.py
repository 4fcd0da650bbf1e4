"""Tiny pipelines with random weights in diffusers' own classes, built offline, for testing the backbone contract.

``ZOO[name]`` builds one; its attributes describe how it is called and what it does in a step.
"""

from addiffusion_lab.tiny_pipelines import (
    controls,
    diffusion_transformers,
    flux,
    language_models,
    refused,
    several_encoders,
    stable_diffusion,
    tasks,
    unets,
)
from addiffusion_lab.tiny_pipelines.builder import Builder

FAMILIES = (stable_diffusion, flux, diffusion_transformers, language_models, several_encoders, unets, tasks, controls)
ZOO: dict[str, Builder] = {name: builder for family in FAMILIES for name, builder in family.BUILDERS.items()}
"""Name of a pipeline -> its builder."""
REFUSED: dict[str, Builder] = refused.BUILDERS
"""Name of a pipeline that is not supported as a backbone -> its builder."""
