"""The arms of the benchmark: each one way of running the denoiser."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.vec_env import SubprocVecEnv

from addiffusion_env.agents.pipeline import AdaptivePipeline
from addiffusion_env.agents.saved_policy import SavedPolicy
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.backbones.stable_diffusion import StableDiffusionBackbone
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.envs.env import AdDiffusionEnv
from addiffusion_env.envs.vector_env import AdDiffusionVectorEnv
from addiffusion_env.samplers import make_sampler
from addiffusion_env.samplers.base import BaseSampler
from addiffusion_lab.bench.setup import Arm, BenchmarkSetup, RoundResult


class BareDenoiser(Arm):
    """Guided evaluations of lanes at different steps, as in a queue, without solver, previews or decoding."""

    name = "bare denoiser loop"

    def __init__(self, setup: BenchmarkSetup) -> None:
        process, backbone, lanes = setup.process, setup.backbone, setup.lanes
        noise = torch.randn(lanes, *backbone.capabilities.latent_shape, generator=torch.Generator().manual_seed(0))
        levels = backbone.sigmas(process.steps, process.spacing)[:-1]
        sigma = torch.from_numpy(np.resize(levels, lanes).copy())
        conditioning = backbone.encode([prompt.text for prompt in setup.prompts(lanes)])
        scale = torch.full((lanes,), process.guidance_scale, dtype=torch.float64)
        self.setup, self.inputs = setup, (noise.to(backbone.device), sigma, conditioning, scale)

    def round(self) -> RoundResult:
        """Evaluates every lane once for each step of the schedule."""
        for _ in range(self.setup.steps):
            self.setup.backbone.predict(*self.inputs)
        return RoundResult(self.setup.lanes * self.setup.steps, 0)


class VectorEnvironment(Arm):
    """``AdDiffusionVectorEnv.step``: evaluation, preview, reward, observation, final decode, next episode."""

    name = "vector env, preview every 1"

    def __init__(self, setup: BenchmarkSetup) -> None:
        self.setup = setup
        self.env = AdDiffusionVectorEnv(setup.lanes, **setup.environment())
        self.env.reset(seed=0)

    def round(self) -> RoundResult:
        """Plays one episode per lane, always continuing."""
        images = 0
        for _ in range(self.setup.steps):
            images += int(self.env.step(np.zeros(self.setup.lanes, dtype=int))[2].sum())
        return RoundResult(self.setup.lanes * self.setup.steps, images)


TIMED_LANES = 4
"""Maximum number of lanes to time: they run one after another, so that the cost per lane is constant."""


class Independent(Arm):
    """Scalar environments, each evaluating one lane, with ``decide_every`` evaluations between previews."""

    def __init__(self, setup: BenchmarkSetup, decide_every: int) -> None:
        self.setup, self.decide_every = setup, decide_every
        self.name = f"independent, one per lane, preview every {decide_every}"
        self.envs = [
            AdDiffusionEnv(**setup.environment(decide_every=decide_every)) for _ in range(min(setup.lanes, TIMED_LANES))
        ]

    def round(self) -> RoundResult:
        """Plays one episode per lane, always continuing."""
        for index, env in enumerate(self.envs):
            env.reset(seed=index)
            over = False
            while not over:
                _, _, over, _, _ = env.step(np.int64(0))
        return RoundResult(len(self.envs) * self.setup.steps, len(self.envs))


def preview_always(setup: BenchmarkSetup) -> Independent:
    """With a preview after every evaluation."""
    return Independent(setup, 1)


def preview_sometimes(setup: BenchmarkSetup) -> Independent:
    """With a preview every ``setup.preview_every`` evaluations."""
    return Independent(setup, setup.preview_every)


def make_env(settings: dict[str, Any]) -> AdDiffusionEnv:
    """An environment in its own process, on one thread, since one process per lane shares the machine."""
    torch.set_num_threads(1)
    return AdDiffusionEnv(**settings)


class Subprocesses(Arm):
    """Stable-Baselines3's ``SubprocVecEnv`` over scalar environments: one process and copy of the weights per lane."""

    name = "SubprocVecEnv, one per lane, preview every 1"
    own_calls = False

    def __init__(self, setup: BenchmarkSetup) -> None:
        assert setup.settings is not None
        self.setup = setup
        # More than two per core only wait for one another, and each takes about a gigabyte.
        self.lanes = min(setup.lanes, 2 * (os.cpu_count() or 1))
        self.env = SubprocVecEnv([partial(make_env, dict(setup.settings)) for _ in range(self.lanes)])
        self.pids = tuple(process.pid for process in self.env.processes)
        self.env.reset()

    def round(self) -> RoundResult:
        """Plays one episode per lane, always continuing."""
        images = 0
        for _ in range(self.setup.steps):
            images += int(self.env.step(np.zeros(self.lanes, dtype=np.int64))[2].sum())
        return RoundResult(self.lanes * self.setup.steps, images)

    def close(self) -> None:
        """Terminates the processes."""
        self.env.close()


WITHOUT = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def pipeline_of(backbone: Backbone) -> Any:
    """The diffusers pipeline of a backbone; the weights are shared, and each text is encoded once, as in the engine."""
    if isinstance(backbone, PipelineBackbone):
        pipe = copy.copy(backbone.pipe)
        pipe.__dict__["scheduler"] = copy.deepcopy(pipe.scheduler)
        pipe.__dict__.update(backbone.evaluator.texts.overrides())
    else:
        from diffusers import StableDiffusionPipeline

        assert isinstance(backbone, StableDiffusionBackbone)
        names = [item.name for item in fields(backbone.parts) if item.name != "preview"]
        pipe = StableDiffusionPipeline(**{name: getattr(backbone.parts, name) for name in names}, **WITHOUT)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class DiffusersPipeline(Arm):
    """The pipeline with the same batch size and pre-encoded prompts."""

    name = "diffusers pipeline"
    own_calls = False

    def __init__(self, setup: BenchmarkSetup) -> None:
        self.setup, self.pipe = setup, pipeline_of(setup.backbone)
        texts = [prompt.text for prompt in setup.prompts(setup.lanes)]
        if isinstance(setup.backbone, PipelineBackbone):
            self.settings = {**setup.backbone.arguments.given, "prompt": texts}
        else:
            tensors = setup.backbone.encode(texts).tensors
            self.settings = {"prompt_embeds": tensors["text"], "negative_prompt_embeds": tensors["negative"]}

    def round(self) -> RoundResult:
        """Generates one batch of images, from the pipeline's own noise."""
        setup, capabilities = self.setup, self.setup.backbone.capabilities
        settings = {**self.settings, "num_inference_steps": setup.steps, "output_type": "pt"}
        if not isinstance(setup.backbone, PipelineBackbone):
            settings |= dict(zip(("height", "width"), capabilities.image_size, strict=True))
            settings["guidance_scale"] = capabilities.default_guidance
        self.pipe(**settings)
        return RoundResult(setup.lanes * setup.steps, setup.lanes)


class AnyPipeline(Arm):
    """``AdaptivePipeline(pipe, "continue")``: the pipeline's own scheduler, no previews; one image per lane.

    Compare it with the sampler ``fixed:N``, which takes equally many evaluations on the setup's own backbone.
    """

    name = "AdaptivePipeline around the diffusers pipeline, continue"
    own_calls = False

    def __init__(self, setup: BenchmarkSetup) -> None:
        own = isinstance(setup.backbone, PipelineBackbone)
        backbone = setup.backbone if own else PipelineBackbone(pipeline_of(setup.backbone), preview="none")
        self.setup, self.pipe = setup, AdaptivePipeline(backbone, "continue", max_lanes=setup.lanes)
        self.pipe.set_progress_bar_config(disable=True)
        self.prepare(0)

    def prepare(self, number: int) -> None:
        """Takes new prompts."""
        self.texts = [prompt.text for prompt in self.setup.prompts(self.setup.lanes, seed=number)]

    def round(self) -> RoundResult:
        """Generates one image per lane."""
        out = self.pipe(self.texts, output_type="np", num_inference_steps=self.setup.steps)
        return RoundResult(float(out.nfe.sum()), len(self.texts))


@dataclass(frozen=True)
class Continue(BaseSampler):
    """Scores previews as a learned policy does, but always continues: measures the cost of preview scores.

    Attributes:
        every: evaluations between two previews.
    """

    every: int
    usage: ClassVar[str] = "continue:EVERY"
    needs_preview: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Name of the table row."""
        return f"AdaptivePipeline, continue, preview every {self.every}"

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """The base schedule with a decision every ``every`` evaluations."""
        return replace(base, decide_every=self.every)


class Adaptive(Arm):
    """Generates a sampler's images through the pipeline, ``setup.lanes`` at once."""

    def __init__(self, setup: BenchmarkSetup, sampler: Any, name: str, images: int) -> None:
        self.name, self.setup, self.images = name, setup, images
        # A trained policy supports only the process that it was trained on.
        process = None if isinstance(sampler, SavedPolicy) else setup.process
        self.pipe = AdaptivePipeline(setup.backbone, sampler, process, setup.scorers, max_lanes=setup.lanes)
        self.prepare(0)

    def prepare(self, number: int) -> None:
        """Takes new prompts."""
        self.texts = [prompt.text for prompt in self.setup.prompts(self.images, seed=number)]

    def round(self) -> RoundResult:
        """Processes the whole queue."""
        out = self.pipe(self.texts, output_type="np")
        return RoundResult(float(out.nfe.sum()), len(self.texts))


def always_continue(setup: BenchmarkSetup) -> Adaptive:
    """The always-continue policy with a preview every ``setup.preview_every`` evaluations, one image per lane."""
    sampler = Continue(setup.preview_every)
    return Adaptive(setup, sampler, sampler.name, setup.lanes)


def by_sampler(setup: BenchmarkSetup, spec: str) -> Adaptive:
    """The arm of a sampler's specification; ``policy:emoji`` is the policy that ships with the package.

    Raises:
        UnknownNameError: for an unknown sampler.
    """
    return Adaptive(setup, make_sampler(spec), f"AdaptivePipeline, {spec}", setup.images)
