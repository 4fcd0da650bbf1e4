"""Qwen-Image."""

from __future__ import annotations

from typing import ClassVar

from addiffusion_env.backbones.named_pipeline import NamedPipeline
from addiffusion_env.backbones.pipelines import PipelineSpec


class QwenImageBackbone(NamedPipeline):
    """Qwen-Image (arXiv:2508.02324): rectified flow, a vision-language model as text encoder.

    Guidance needs a negative prompt, as in its pipeline; its model card uses a blank one.
    """

    name = "qwen_image"
    spec = PipelineSpec(
        "qwen_image",
        "QwenImagePipeline",
        "Qwen/Qwen-Image",
        unused=(),
        auto_dtype="bfloat16",
    )
    own: ClassVar = {"num_inference_steps": 50, "true_cfg_scale": 4.0, "negative_prompt": " "}
