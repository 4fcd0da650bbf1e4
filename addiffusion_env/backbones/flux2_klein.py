"""FLUX.2 klein."""

from __future__ import annotations

from typing import ClassVar

from addiffusion_env.backbones.named_pipeline import NamedPipeline
from addiffusion_env.backbones.pipelines import PipelineSpec


class Flux2KleinBackbone(NamedPipeline):
    """FLUX.2 klein 4B: 1024x1024, distilled to four steps without classifier-free guidance.

    The undistilled base models load as well: use 50 steps and guidance_scale 4 for them.
    """

    name = "flux2_klein"
    spec = PipelineSpec(
        "flux2_klein",
        "Flux2KleinPipeline",
        "black-forest-labs/FLUX.2-klein-4B",
        unused=(),
        auto_dtype="bfloat16",
    )
    own: ClassVar = {"num_inference_steps": 4, "guidance_scale": 1.0}
