"""The tiny pipelines of the tests; they are part of the package, since the command that writes docs uses them."""

from addiffusion_lab.tiny_pipelines import REFUSED, ZOO

__all__ = ["REFUSED", "ZOO"]
