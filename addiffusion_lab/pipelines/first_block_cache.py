"""First-Block cache: skips a transformer's other blocks if its first block's residual has hardly changed.

From ParaAttention (https://github.com/chengzeyi/ParaAttention), after TeaCache (arXiv:2411.19108), with diffusers'
hooks. diffusers has no cache for UNets, so DeepCache (arXiv:2312.00858) is not among the samplers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.named_pipelines import FluxBackbone
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.errors import CapabilityError
from addiffusion_env.files import cached
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.base import require_at_least
from addiffusion_env.scorers.image_scores import ImageScorers
from addiffusion_lab.pipelines.whole import (
    PipelineResult,
    WholePipeline,
    call_inputs,
    counted,
    is_kind,
    kind_of,
    silent,
)


@dataclass
class FirstBlockCache(WholePipeline):
    """Flux's own schedule with First-Block cache (ParaAttention, after arXiv:2411.19108), by diffusers' hooks.

    Every step calls the network; if the first block's residual has changed by less than the threshold, the other blocks
    are skipped and their last residual is added. Such a call counts the share of blocks that it ran as NFE, and one in
    ``network_calls``; the record's ``skipped_calls`` counts such calls.

    Attributes:
        steps: steps of the schedule.
        threshold: relative mean absolute change of the first block's residual; 0 never skips.
    """

    steps: int
    threshold: float

    usage: ClassVar[str] = "fbcache:STEPS,THRESHOLD"
    example: ClassVar[tuple[str, str]] = ("flux", "fbcache:3,0.1")

    def __post_init__(self) -> None:
        require_at_least("fbcache", "STEPS", self.steps, 1)
        require_at_least("fbcache", "THRESHOLD", self.threshold, 0)

    @classmethod
    def needs(cls) -> str:
        """A transformer's weights, unless they are cached."""
        repo = FluxBackbone.spec.default_id
        return "" if cached(repo) else f"backbone=flux, a transformer ({repo})"

    def bind(self, backbone: Backbone, scorers: ImageScorers) -> None:
        """Checks the backbone.

        Raises:
            CapabilityError: unless it is a transformer whose blocks diffusers can cache.
        """
        flux_pipeline(self.name, backbone)
        super().bind(backbone, scorers)

    def make(self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> PipelineResult:
        """Runs ``FluxPipeline`` with the cache enabled, and disables it afterwards."""
        pipe = own_copy(flux_pipeline(self.name, backbone))
        network = pipe.transformer
        blocks = [*network.transformer_blocks, *network.single_transformer_blocks]
        inputs = call_inputs(pipe, backbone, process, prompt, seed)
        latents = inputs["latents"]
        inputs["latents"] = pipe._pack_latents(latents, *latents.shape)
        with first_block_cache(network, self.threshold), counted(network) as calls, counted_runs(blocks[-1]) as whole:
            tokens = pipe(**inputs).images
        latents = pipe._unpack_latents(tokens.float(), *latents.shape[2:], vae_scale_factor=1)
        skipped = calls.rows - whole[0]
        costs = {"skipped_calls": float(skipped)}
        return PipelineResult(backbone.decode(latents)[0], whole[0] + skipped / len(blocks), calls.rows, costs)


def flux_pipeline(sampler: str, backbone: Backbone) -> Any:
    """The backbone's pipeline, if diffusers can cache its transformer's blocks.

    Raises:
        CapabilityError: for other backbones.
    """
    if not isinstance(backbone, PipelineBackbone) or not is_kind(backbone.pipe, "FluxPipeline"):
        raise CapabilityError(
            f"{sampler} caches the blocks of Flux's transformer, and this backbone is {kind_of(backbone)}: diffusers "
            "has no cache for UNets (DeepCache is not part of it)",
            "use backbone=flux",
        )
    return backbone.pipe


def own_copy(pipe: Any) -> Any:
    """A pipeline with the same components and a copy of the scheduler, without progress bars."""
    made = copy.copy(pipe)
    made.__dict__["scheduler"] = copy.deepcopy(pipe.scheduler)
    return silent(made)


@contextmanager
def first_block_cache(transformer: Any, threshold: float) -> Iterator[None]:
    """Context manager that enables the transformer's cache, initially empty, and disables it on exit."""
    from diffusers import FirstBlockCacheConfig

    transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    try:
        yield
    finally:
        transformer.disable_cache()


@contextmanager
def counted_runs(block: nn.Module) -> Iterator[list[int]]:
    """Context manager that counts the runs of a block that are not skipped, in a list of one element."""
    runs = [0]

    def count(*_: Any) -> None:
        runs[0] += 1

    # The cache's hook replaces the block and is always called; a layer inside is not called when it skips.
    handle = next(block.children()).register_forward_hook(count)
    try:
        yield runs
    finally:
        handle.remove()
