"""Tiny pipelines with random weights in diffusers' own classes, built offline, to run a backbone's contract over.

``ZOO[name]`` builds one; its attributes say how it is called and what it does in a step.
"""

from zoo import diffusion_transformers, flux, language_models, several_encoders, stable_diffusion, unets
from zoo.builder import Builder

ZOO: dict[str, Builder] = {
    name: builder
    for family in (stable_diffusion, flux, diffusion_transformers, language_models, several_encoders, unets)
    for name, builder in family.BUILDERS.items()
}
"""Name of a pipeline -> what builds it."""
