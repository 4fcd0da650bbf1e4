"""State of the generated images after every decision, independent of the page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from addiffusion_env.agents.pipeline import AdaptivePipeline
from addiffusion_env.agents.saved_policy import SavedPolicy
from addiffusion_env.backbones import Traits as ModelTraits
from addiffusion_env.engine.coroutines import env_step
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lane import Decide, Lane, open_lane
from addiffusion_env.engine.process import Action, ProcessConfig
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import ConfigError
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers import make_sampler
from addiffusion_env.samplers.base import BaseSampler, placed
from addiffusion_env.samplers.traits import Traits
from addiffusion_env.scorers import SCORERS
from addiffusion_env.scorers.image_scores import GeneratedImage, ImageScores, NoScorers, to_pixels

REFERENCE = "fixed:50"
"""The fixed-step reference sampler."""

MOST_MOMENTS = 10
"""Previews kept of a sampler that continues at every step without seeing any, evenly spaced over its steps."""


@dataclass(frozen=True)
class Moment:
    """One decision.

    Attributes:
        step: schedule steps before it.
        nfe: NFE before it.
        pixels: (h, w, 3) uint8, the preview, or the finished image that could be accepted.
        action: 0 continue, 1 stop, 2 refine.
        probabilities: (3,) probabilities of the policy, illegal actions 0; ``None`` for a sampler that follows a
            schedule.
        preference: preference of the preview; NaN where it was not scored.
        mask: (h', w') region that the previous refinement redrew; ``None`` for none.
    """

    step: int
    nfe: float
    pixels: np.ndarray
    action: int
    probabilities: np.ndarray | None
    preference: float
    mask: np.ndarray | None


@dataclass(frozen=True)
class Take:
    """An image, in progress or finished.

    Attributes:
        name: name of the sampler: ``"policy"``, ``"fixed:6"``.
        moments: its decisions so far.
        nfe: NFE so far.
        seconds: wall-clock seconds so far, without the previews that only the page needs.
        image: (H, W, 3) uint8 when finished.
        preference: of the finished image.
        correct: whether an object detector finds exactly what the prompt asks for; ``None`` without a verdict.
        reason: the reason if not.
    """

    name: str
    moments: tuple[Moment, ...] = ()
    nfe: float = 0.0
    seconds: float = 0.0
    image: np.ndarray | None = None
    preference: float = float("nan")
    correct: bool | None = None
    reason: str = ""


class Studio:
    """Generates takes with one policy on one model.

    Args:
        pipe: the policy with its model: one from a file, or a sampler that decides within one episode.
        own_steps: compare with the pipeline's own schedule, and with half of its steps, both with the pipeline's own
            solver and guidance; otherwise with as many fixed steps as the policy took, and with fifty.

    Raises:
        ConfigError: for a sampler that decides nothing (``fixed:20``) or does not run as one episode (``best_of``).
    """

    def __init__(self, pipe: AdaptivePipeline, own_steps: bool = False) -> None:
        check_policy(pipe.sampler)
        self.pipe = pipe
        self.sampler: Any = pipe.sampler
        can, name = pipe.backbone.capabilities, pipe.backbone.name
        self.own_steps = can.default_steps if own_steps else None
        self._fixed = EnvSettings(refine="off").process(can, name) if own_steps else pipe.process

    @property
    def traits(self) -> ModelTraits:
        """Traits of the model."""
        return self.pipe.backbone.traits

    @property
    def learned(self) -> bool:
        """Whether the policy is one from a file, with probabilities and perhaps a cost per NFE."""
        return isinstance(self.sampler, SavedPolicy)

    @property
    def scored(self) -> bool:
        """Whether finished images are scored."""
        return not isinstance(self.pipe.scorers, NoScorers)

    @property
    def cost_per_nfe(self) -> float:
        """The policy's default cost per NFE; 0 for one that has none."""
        return self.sampler.cost_per_nfe if self.learned else 0.0

    @property
    def highest_cost_per_nfe(self) -> float:
        """The highest cost per NFE that the policy was trained at; 0 when it does not observe it."""
        return self.sampler.config.highest_cost_per_nfe if self.learned and self.sampler.varies_cost else 0.0

    def comparators(self, nfe: float) -> tuple[str, ...]:
        """The fixed-step samplers that a policy's image of ``nfe`` evaluations is shown beside."""
        return comparators(nfe) if self.own_steps is None else own_comparators(self.own_steps)

    def policy(self, prompt: Prompt, seed: int, cost_per_nfe: float) -> Iterator[Take]:
        """The policy's image: yields a take at each decision, and finally the finished one.

        Raises:
            ConfigError: for a cost per NFE that is negative or not a number.
            PromptError: when the prompt does not fit the text window.
        """
        if not np.isfinite(cost_per_nfe) or cost_per_nfe < 0:
            raise ConfigError(f"The cost per NFE must be 0 or more, got {cost_per_nfe}.", "Move the slider.")
        sampler = self.sampler
        if self.highest_cost_per_nfe:
            sampler = replace(sampler, cost_per_nfe=float(cost_per_nfe))
            sampler.bind(self.pipe.backbone, self.pipe.scorers)
        yield from self._roll("policy", sampler, self.pipe.process, prompt, seed)

    def fixed(self, spec: str, prompt: Prompt, seed: int) -> Iterator[Take]:
        """The image of a sampler without learning (``"fixed:6"``), in the same way."""
        sampler = make_sampler(spec)
        sampler.bind(self.pipe.backbone, self.pipe.scorers)
        yield from self._roll(spec, sampler, placed(sampler, self._fixed, self.pipe.backbone), prompt, seed)

    def _roll(self, name: str, sampler: Any, process: ProcessConfig, prompt: Prompt, seed: int) -> Iterator[Take]:
        backbone = self.pipe.backbone
        engine = Engine(backbone, self.pipe.scorers, solver=process.solver)
        backbone.encode([prompt.text])  # cached, so that it does not count in any sampler's time
        lane, take = open_lane(backbone, process, prompt, seed), Take(name)
        before: ImageScores | None = None
        memory: Any = None
        image: GeneratedImage | None = None
        decisions = 0
        while image is None:
            began = time.perf_counter()
            request = Decide(lane, before, memory)
            [action] = sampler.decide([request])
            deciding = time.perf_counter() - began
            if (
                sampler.needs_preview
                or process.decide_at is not None
                or action != Action.CONTINUE
                or decisions * MOST_MOMENTS % process.steps < MOST_MOMENTS
            ):
                moment = self._moment(sampler, request, action)
                take = replace(take, moments=(*take.moments, moment), nfe=lane.nfe)
                yield take
            before, memory, decisions = lane.scores, getattr(action, "memory", None), decisions + 1
            began = time.perf_counter()
            [(lane, image)] = engine.run([env_step(backbone, process, lane, int(action), sampler.needs_preview)])
            take = replace(take, seconds=take.seconds + deciding + time.perf_counter() - began, nfe=lane.nfe)
        yield self._finished(take, prompt, image)

    def _moment(self, sampler: Any, request: Decide, action: int) -> Moment:
        lane: Lane = request.lane
        probabilities = sampler.probabilities([request])[0] if isinstance(sampler, SavedPolicy) else None
        preference = float("nan") if lane.scores is None else float(lane.scores.preference[0])
        return Moment(lane.step, lane.nfe, self._pixels(lane), action, probabilities, preference, lane.refine_mask)

    def _pixels(self, lane: Lane) -> np.ndarray:
        if lane.shown is not None:
            return lane.shown.pixels()
        return to_pixels(self.pipe.backbone.preview(lane.latents.x if lane.x0 is None else lane.x0)[0])

    def _finished(self, take: Take, prompt: Prompt, image: GeneratedImage) -> Take:
        done = replace(take, image=image.pixels(), preference=float(image.scores.preference[0]))
        if self._judge is None or prompt.requirements is None:
            return done
        [verdict] = self._judge.verdicts(image.tensor[None], [prompt])
        return replace(done, correct=verdict.correct, reason=verdict.reason)

    @cached_property
    def _judge(self) -> Any:
        """The first of the model's default judges that gives verdicts, or ``None``."""
        kinds = (SCORERS.load(name) for name in self.traits.judges)
        kind = next((kind for kind in kinds if hasattr(kind, "verdicts")), None)
        return None if kind is None else kind.from_pretrained(device=self.pipe.backbone.device)


def check_policy(sampler: Any) -> None:
    """Refuses a sampler whose image the demo could not show, decision by decision.

    Raises:
        ConfigError: naming what can be shown.
    """
    one_episode = isinstance(sampler, SavedPolicy) or type(sampler).coroutine is BaseSampler.coroutine
    if not one_episode or Traits.of(sampler).schedule_steps is not None:
        why = "decides nothing: fixed steps are beside it anyway" if one_episode else "is more than one episode"
        raise ConfigError(
            f"the demo shows the decisions of a policy, and {sampler.name!r} {why}",
            "name a run's or calibration's folder, or 'emoji'; with --pipe also stop:12 or checked_attempts:0",
        )


def own_comparators(steps: int) -> tuple[str, ...]:
    """The fixed-step samplers of a pipeline's own schedule of ``steps``: half of it, and all of it.

    >>> own_comparators(50), own_comparators(1)
    (('fixed:25', 'fixed:50'), ('fixed:1',))
    """
    return tuple(dict.fromkeys((f"fixed:{max(1, steps // 2)}", f"fixed:{steps}")))


def comparators(nfe: float) -> tuple[str, ...]:
    """The fixed-step samplers to compare with an image of ``nfe`` evaluations: as many steps, and fifty.

    >>> comparators(4.5), comparators(0.5)
    (('fixed:5', 'fixed:50'), ('fixed:1', 'fixed:50'))
    """
    return f"fixed:{max(1, int(np.floor(nfe + 0.5)))}", REFERENCE
