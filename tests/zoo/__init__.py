"""The tiny pipelines that tests run over; they live in the package, where the command that writes docs needs them."""

from addiffusion_lab.tiny_pipelines import REFUSED, ZOO

__all__ = ["REFUSED", "ZOO"]
