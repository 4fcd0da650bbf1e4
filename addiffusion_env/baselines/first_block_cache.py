"""First-Block cache: where a transformer's first block says what it said a step ago, the others are not asked.

Of ParaAttention (https://github.com/chengzeyi/ParaAttention), after TeaCache (arXiv:2411.19108), by diffusers' hooks.
diffusers' caches are for transformers; for UNets it has none, so DeepCache (arXiv:2312.00858) is not among the methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.flux import FluxBackbone, packed, unpacked
from addiffusion_env.backbones.hub import cached
from addiffusion_env.baselines.base import fixed_schedule, read_numbers, require_at_least
from addiffusion_env.baselines.whole import Made, WholePipeline, counted, silent
from addiffusion_env.engine.lane import open_lane
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.errors import CapabilityError
from addiffusion_env.prompts.base import Prompt
from addiffusion_env.scorers.look import LookScorers


@dataclass
class FirstBlockCache(WholePipeline):
    """Flux's own schedule with First-Block cache (ParaAttention, after arXiv:2411.19108), by diffusers' hooks.

    Every step calls the network; where the first block's residual has changed by less than the threshold, the call
    ends there and the other blocks' last residual is added. Such a call counts the share of blocks that it ran as
    NFE, and a whole one in ``network_calls``; the record's ``skipped_calls`` says how many there were.

    Attributes:
        steps: of the schedule.
        threshold: relative mean absolute change of the first block's residual; 0 never skips.
    """

    steps: int
    threshold: float

    usage: ClassVar[str] = "fbcache:STEPS,THRESHOLD"

    def __post_init__(self) -> None:
        require_at_least("fbcache", "STEPS", self.steps, 1)
        require_at_least("fbcache", "THRESHOLD", self.threshold, 0)

    @classmethod
    def parse(cls, text: str) -> FirstBlockCache:
        """``"20,0.1"``."""
        return cls(*read_numbers(cls, text, (int, float), ","))

    @classmethod
    def needs(cls) -> str:
        """A transformer's weights, unless they are cached."""
        repo = FluxBackbone.spec.default_id
        return "" if cached(repo) else f"backbone=flux, a transformer ({repo})"

    @property
    def name(self) -> str:
        """``fbcache:20,0.1``."""
        return f"fbcache:{self.steps},{self.threshold:g}"

    def bind(self, backbone: Backbone, scorers: LookScorers) -> None:
        """Checks the backbone.

        Raises:
            CapabilityError: unless it is a transformer whose blocks diffusers can cache.
        """
        transformer_of(self.name, backbone)
        super().bind(backbone, scorers)

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """A fixed schedule."""
        return fixed_schedule(base, self.steps)

    def make(self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> Made:
        """Runs ``FluxPipeline`` with the cache on, and takes it off again."""
        flux = transformer_of(self.name, backbone)
        pipe = flux_pipeline(flux)
        lane = open_lane(backbone, process, prompt, seed)
        height, width = backbone.capabilities.image_size
        blocks = [*flux.denoiser.transformer_blocks, *flux.denoiser.single_transformer_blocks]
        with (
            first_block_cache(flux.denoiser, self.threshold),
            counted(flux.denoiser) as calls,
            counted_runs(blocks[-1]) as whole,
        ):
            tokens = pipe(
                prompt_embeds=lane.conditioning.tensors["text"],
                pooled_prompt_embeds=lane.conditioning.tensors["pooled"],
                latents=packed(lane.latents.x).to(flux.dtype),
                num_inference_steps=self.steps,
                guidance_scale=flux.options.distilled_guidance,
                height=height,
                width=width,
                output_type="latent",
            ).images
        latents = unpacked(tokens.float(), *backbone.capabilities.latent_shape[1:])
        skipped = calls.rows - whole[0]
        costs = {"skipped_calls": float(skipped)}
        return Made(backbone.decode(latents)[0], whole[0] + skipped / len(blocks), calls.rows, costs)


def transformer_of(method: str, backbone: Backbone) -> FluxBackbone:
    """The backbone, when diffusers can cache its blocks.

    Raises:
        CapabilityError: for a UNet.
    """
    if not isinstance(backbone, FluxBackbone):
        raise CapabilityError(
            f"{method} caches a transformer's blocks, and backbone {backbone.name!r} is a UNet: diffusers has no "
            "cache for those (DeepCache is not part of it)",
            "use backbone=flux",
        )
    return backbone


def flux_pipeline(backbone: FluxBackbone) -> Any:
    """A ``FluxPipeline`` of a backbone's components, with a scheduler of its own."""
    from diffusers import FluxPipeline

    parts = backbone.parts
    return silent(
        FluxPipeline(
            scheduler=type(parts.scheduler).from_config(parts.scheduler.config),
            vae=parts.vae,
            text_encoder=parts.text_encoder,
            tokenizer=parts.tokenizer,
            text_encoder_2=parts.text_encoder_2,
            tokenizer_2=parts.tokenizer_2,
            transformer=parts.transformer,
        )
    )


@contextmanager
def first_block_cache(transformer: Any, threshold: float) -> Iterator[None]:
    """Within it the transformer caches, from an empty cache; afterwards it computes as before."""
    from diffusers import FirstBlockCacheConfig

    transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    try:
        yield
    finally:
        transformer.disable_cache()


@contextmanager
def counted_runs(block: nn.Module) -> Iterator[list[int]]:
    """Within it the runs of a block that are not skipped are counted, into a list of one."""
    runs = [0]

    def count(*_: Any) -> None:
        runs[0] += 1

    # The cache's hook stands in the block's own place and is always called; a layer inside is not when it skips.
    handle = next(block.children()).register_forward_hook(count)
    try:
        yield runs
    finally:
        handle.remove()
