"""Z-Image-Turbo."""

from __future__ import annotations

from typing import ClassVar

from addiffusion_env.backbones.named_pipeline import NamedPipeline
from addiffusion_env.backbones.pipelines import PipelineSpec


class ZImageBackbone(NamedPipeline):
    """Z-Image-Turbo: 1024x1024, distilled to eight evaluations without guidance.

    Its pipeline adds guidance_scale to 1: 0 is no guidance, and the engine's scale is larger by one.
    """

    name = "z_image"
    spec = PipelineSpec(
        "z_image",
        "ZImagePipeline",
        "Tongyi-MAI/Z-Image-Turbo",
        unused=(),
        auto_dtype="bfloat16",
    )
    own: ClassVar = {"num_inference_steps": 8, "guidance_scale": 0.0}
