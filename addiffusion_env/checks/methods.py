"""Contracts of samplers, learned or not."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from addiffusion_env.backbones.base import Backbone, Capabilities
from addiffusion_env.checks.base import require
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.evaluation.records import Record
from addiffusion_env.evaluation.runner import EvaluationContext, evaluate
from addiffusion_env.prompts import Prompt
from addiffusion_env.prompts.emoji_grammar import emoji_prompt
from addiffusion_env.samplers import SAMPLERS, make_sampler
from addiffusion_env.samplers.base import Sampler
from addiffusion_env.scorers.image_scores import ImageScorers

TEXTS = ("a photo of a dog", "a photo of a red cup and a blue clock")


@dataclass(frozen=True)
class SamplerCase:
    """A sampler and what it runs on.

    Attributes:
        spec: its specification, for example ``"fixed:20"``.
        backbone: a loaded model.
        scorers: score its images.
    """

    spec: str
    backbone: Backbone
    scorers: ImageScorers

    @property
    def context(self) -> EvaluationContext:
        """Three steps, the backbone's default solver, guidance where supported."""
        return EvaluationContext(self.backbone, self.scorers, _process(self.backbone.capabilities))

    @property
    def prompts(self) -> list[Prompt]:
        """Two prompts of the emoji world's vocabulary."""
        return [emoji_prompt(text) for text in TEXTS]

    def records(self, prompts: Sequence[Prompt], lanes: int) -> list[Record]:
        """Generates one image per prompt, ``lanes`` at a time."""
        with tempfile.TemporaryDirectory() as folder:
            return evaluate([make_sampler(self.spec)], list(prompts), [0], self.context, Path(folder), max_lanes=lanes)

    @cached_property
    def before(self) -> tuple[int, dict[str, Any], torch.Tensor]:
        """The model before the first image: number of hooks, attention processors, one prediction."""
        module: Any = self.backbone.denoiser  # type: ignore[attr-defined]
        return _hooks(module), dict(getattr(module, "attn_processors", None) or {}), _predicted(self)

    @cached_property
    def together(self) -> list[Record]:
        """Both images, generated in one batch."""
        _ = self.before
        return self.records(self.prompts, lanes=2)


def it_says_what_it_is(case: SamplerCase) -> None:
    """Its usage begins with its name, its docstring with a sentence, and needs() is a string."""
    bare = case.spec.partition(":")[0]
    kind = SAMPLERS.load(bare)
    made = make_sampler(case.spec)
    require(isinstance(made, Sampler), f"{kind.__name__} makes no Sampler", "derive it from BaseSampler")
    require(kind.usage.split(":")[0] == bare, f"its usage is {kind.usage!r}", f"write {bare}:ARGUMENTS")
    first = (kind.__doc__ or "").strip().splitlines()[0:1]
    require(bool(first) and first[0].endswith("."), f"its docstring begins {first}", "with one sentence on one line")
    require(isinstance(kind.needs(), str), "needs() gives no string", "return a text that says what this machine lacks")


def cost_is_counted(case: SamplerCase) -> None:
    """Every image has a cost: NFE above 0, at least as many network calls, seconds above 0, at least one decision."""
    for record in case.together:
        require(record.nfe > 0, f"an image took {record.nfe} NFE", "count every evaluation")
        require(record.network_calls >= record.nfe, f"{record.network_calls} calls for {record.nfe} NFE", "count calls")
        figures = [record.seconds, record.preference, *record.extra.values()]
        require(bool(np.isfinite(figures).all()), f"figures are not finite: {figures}", "report finite ones")
        require(record.seconds > 0 and record.decisions >= 1, "no time or no decision", "report both")


def an_image_is_its_own(case: SamplerCase) -> None:
    """An image depends on its prompt and seed only, not on the rest of the batch."""
    one, [other] = case.together[1], case.records(case.prompts[1:], lanes=1)
    require(_facts(one) == _facts(other), f"{_facts(one)} became {_facts(other)}", "key noise by prompt and seed")
    apart = abs(one.preference - other.preference)
    require(apart <= 2e-3, f"its preference moved by {apart:.2g}", "key noise by prompt and seed")
    require(case.together[0].preference != case.together[1].preference, "two prompts gave one image", "read the prompt")


def the_model_is_left_alone(case: SamplerCase) -> None:
    """The model's hooks, attention processors and predictions are unchanged afterwards."""
    module: Any = case.backbone.denoiser  # type: ignore[attr-defined]
    hooks, processors, predicted = case.before
    _ = case.together
    require(_hooks(module) == hooks, "it left a hook on the model", "remove it")
    for name, kept in processors.items():
        same = module.attn_processors[name] is kept
        require(same, f"it left another processor at {name}", "restore the previous one")
    apart = float((_predicted(case) - predicted).abs().max())
    require(apart <= 1e-5, f"the model's prediction moved by {apart:.2g}", "undo what was patched")


SAMPLER_CONTRACTS = (it_says_what_it_is, cost_is_counted, an_image_is_its_own, the_model_is_left_alone)
"""Subject: a :class:`SamplerCase`."""


def _process(capabilities: Capabilities) -> ProcessConfig:
    guidance = 4.0 if capabilities.guidance else 1.0
    return ProcessConfig(
        steps=3,
        spacing=capabilities.default_spacing,
        solver=capabilities.default_solver,
        guidance_scale=guidance,
        network_calls=capabilities.network_calls,
    )


def _facts(record: Record) -> Record:
    """The values of a record that may not depend on the machine's speed or on the batch size."""
    timeless = replace(record, seconds=0.0, peak_memory=0)
    return replace(timeless, preference=0.0, clip_score=0.0, extra={}, probabilities=None, correctness=None)


def _hooks(module: Any) -> int:
    return sum(len(part._forward_pre_hooks) + len(part._forward_hooks) for part in module.modules())


def _predicted(case: SamplerCase) -> torch.Tensor:
    shape = case.backbone.capabilities.latent_shape
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(case.backbone.device)
    one = torch.ones(1, dtype=torch.float64)
    return case.backbone.predict(x, 0.5 * one, case.backbone.encode([TEXTS[0]]), one).x0
