"""The planned images of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.base import Sampler


@dataclass(frozen=True)
class Job:
    """One image to generate."""

    uid: str
    prompt: Prompt
    seed: int


@dataclass(frozen=True)
class Plan:
    """The planned images of one sampler.

    Attributes:
        sampler: bound to the context's backbone.
        process: its decision process.
        variant: see :func:`variant_of`.
        jobs: prompts in order, the seeds of each together.
        identity: identity of the models that generate and judge them; see :func:`.identity_of`.
    """

    sampler: Sampler
    process: ProcessConfig
    variant: str
    jobs: tuple[Job, ...]
    identity: Mapping[str, Any] = field(default_factory=dict)
