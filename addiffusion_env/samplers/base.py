"""The sampler interface: how evaluations are spent on an image. Policies and baselines share it."""

from __future__ import annotations

import typing
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.solvers import SCHEDULER
from addiffusion_env.engine.episode import Episode, play
from addiffusion_env.engine.lane import Decide, Request
from addiffusion_env.engine.process import REFINE_PRESETS, Action, ProcessConfig
from addiffusion_env.errors import ConfigError
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.traits import ScoresUsed, selected_by
from addiffusion_env.scorers.image_scores import ImageScorers

if TYPE_CHECKING:
    from typing_extensions import Self

EpisodeCoroutine = Generator[Request, Any, Episode]

SEED_STRIDE = 1_000_003
"""Attempt ``j`` of an image with seed ``s`` uses the noise of seed ``s + SEED_STRIDE * j``: attempt 0 is the image that
every single-attempt sampler starts from, and no two attempts of seeds below the stride share noise."""


@dataclass(frozen=True)
class BilledEpisode(Episode):
    """An episode with cost records besides the NFE and the network calls of its lane.

    Attributes:
        costs: further numbers for the record's ``extra``, by name: ``chosen_nfe``, ``gradient_calls``.
        seconds: measured wall-clock; ``None`` to estimate it from its share of the run's network calls.
    """

    costs: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None


@runtime_checkable
class Sampler(Protocol):
    """Generates images; run by :func:`addiffusion_env.evaluation.runner.evaluate`."""

    @property
    def name(self) -> str:
        """The specification that creates it (``"fixed:20"``); unique within an evaluation."""

    @property
    def needs_preview(self) -> bool:
        """Whether it needs a scored preview at each decision; other samplers avoid this cost."""

    def bind(self, backbone: Backbone, scorers: ImageScorers) -> None:
        """Called once, before :meth:`process`, with the model and scorers that it will run on."""

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """The decision process that it runs under, derived from the evaluation's process."""

    def coroutine(self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> EpisodeCoroutine:
        """Generates one image, as a coroutine of the engine."""

    def decide(self, requests: Sequence[Decide]) -> list[int]:
        """One action for each lane that waits for a decision."""


@runtime_checkable
class NeedsPrompts(Protocol):
    """A sampler that needs all prompts of an evaluation before it generates the first image."""

    def setup(self, prompts: Sequence[Prompt]) -> None:
        """Called once, between :meth:`Sampler.bind` and :meth:`Sampler.process`; prompt ids are unique."""


class BaseSampler:
    """Default behaviour of samplers: no preparation, the base process, one episode, always continue.

    A subclass declares its traits (:class:`.traits.Traits`) where they differ from those here. If it is a dataclass,
    its fields that are numbers or texts are the values of its specification, in order: :meth:`parse` reads them, and
    :attr:`name` writes them.

    Attributes:
        usage: format of its specification; begins with its registered name; optional values are in brackets.
        separator: between the values of its specification.
        needs_preview: see :class:`Sampler`.
        selects_by: the scorers by which it selects one of several finished images, as names of parts of
            :class:`.ImageScorers`. A sampler that neither selects nor needs previews runs without any scorer.
        constant, learned, bound, schedule_steps, curve: see :class:`.traits.Traits`.
        attempt_counts: minimum and maximum number of images generated for each one that is kept.
        uses_engine: whether the engine generates its images under its process; ``False`` where a whole diffusers
            pipeline does.
        example: (backbone, small specification) that ``check`` runs; FOLDER stands for a folder of tiny weights.
    """

    usage: ClassVar[str]
    separator: ClassVar[str] = ","
    needs_preview: ClassVar[bool] = False
    selects_by: ClassVar[Sequence[str]] = ()
    constant: ClassVar[bool] = False
    learned: ClassVar[bool] = False
    bound: ClassVar[bool] = False
    schedule_steps: ClassVar[int | None] = None
    curve: ClassVar[str] = ""
    attempt_counts: ClassVar[tuple[int, int]] = (1, 1)
    uses_engine: ClassVar[bool] = True
    example: ClassVar[tuple[str, str]] = ("emoji", "")

    @classmethod
    def needs(cls) -> str:
        """What this machine lacks to run it, in a few words; empty when nothing is missing."""
        return ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads the part of its specification after the colon.

        Raises:
            ConfigError: for numbers of the wrong form or range.
        """
        kinds = _values(cls)
        if not kinds and not text:
            return cls()
        return cls(*read_numbers(cls, text, list(kinds.values()), cls.separator, cls.usage.count("[")))

    @property
    def name(self) -> str:
        """The specification that creates it; optional values are left out where all have their defaults."""
        if not is_dataclass(self):
            raise NotImplementedError
        own = [item for item in fields(self) if item.name in _values(type(self))]
        optional = own[len(own) - self.usage.count("[") :]
        if all(getattr(self, item.name) == item.default for item in optional):
            own = own[: len(own) - len(optional)]
        values = [value for item in own if (value := getattr(self, item.name)) is not None]
        shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
        return self.usage.partition(":")[0] + (":" + self.separator.join(shown) if shown else "")

    @property
    def kind(self) -> str:
        """The kind of comparator that it counts as."""
        return self.usage.partition(":")[0]

    @property
    def scores_used(self) -> ScoresUsed:
        """The scorers that cannot judge it; see :class:`.traits.Traits`."""
        return selected_by(self.selects_by, self.needs_preview)

    def bind(self, backbone: Backbone, scorers: ImageScorers) -> None:
        """Does nothing."""

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """The unchanged base process."""
        return base

    def coroutine(self, backbone: Backbone, process: ProcessConfig, prompt: Prompt, seed: int) -> EpisodeCoroutine:
        """One plain episode."""
        return play(backbone, process, prompt, seed, looks=self.needs_preview)

    def decide(self, requests: Sequence[Decide]) -> list[int]:
        """Always continue."""
        return [int(Action.CONTINUE)] * len(requests)


def _values(kind: type) -> dict[str, type]:
    """Field -> type, for the fields of a class of samplers that its specification holds."""
    if not is_dataclass(kind):
        return {}
    hints = typing.get_type_hints(kind)
    options = {
        item.name: typing.get_args(hints[item.name]) or (hints[item.name],) for item in fields(kind) if item.init
    }
    return {name: types[0] for name, types in options.items() if types[0] in (int, float, str)}


def placed(sampler: Sampler, base: ProcessConfig, backbone: Backbone, evaluations: int | None = None) -> ProcessConfig:
    """A sampler's process on a backbone whose schedule of n steps may take another number of evaluations.

    Image-to-image pipelines begin in the middle of their schedule (``strength``), second-order schedulers evaluate
    twice in a step.

    Args:
        sampler: the sampler; a process with other steps than ``base`` has one evaluation each.
        base: the base process.
        backbone: the model.
        evaluations: of the image, where its own arguments decide it; ``None`` for the backbone's schedule.

    Raises:
        CapabilityError: when the backbone lacks a capability that the process needs.
    """
    if evaluations is None:
        evaluations = len(backbone.sigmas(base.steps, base.spacing)) - 1
    made = sampler.process(base if evaluations == base.steps else replace(base, evaluations=evaluations))
    if (made.steps, made.spacing) != (base.steps, base.spacing):
        made = replace(made, evaluations=None)
    made.check(backbone.capabilities, backbone.name)
    return made


def every_step(base: ProcessConfig) -> ProcessConfig:
    """The base schedule with a decision at every step and without refinement."""
    return replace(base, decide_every=1, decide_at=None, check_finished=False, refine=REFINE_PRESETS["off"])


def fixed_schedule(base: ProcessConfig, steps: int, spacing: str | None = None) -> ProcessConfig:
    """A schedule of ``steps`` evaluations with the solver and guidance of ``base``, one decision each, no refinement.

    Trailing spacing is the strongest of the standard ones where few steps are taken (arXiv:2305.08891, section 3.3);
    it is the default, except where ``base`` keeps the pipeline's own timesteps: some schedulers have no others. A
    spacing other than the scheduler's is stepped with DDIM.
    """
    own = base.solver == SCHEDULER
    chosen = spacing or (SCHEDULER if SCHEDULER in (base.solver, base.spacing) else "trailing")
    return replace(
        every_step(base),
        steps=steps,
        spacing=chosen,
        solver="ddim" if own and chosen != SCHEDULER else base.solver,
        guidance_interval=None,  # guided throughout, as the field's fixed-step samplers are
    )


def read_numbers(
    sampler: type[BaseSampler], text: str, kinds: Sequence[type], separator: str, optional: int = 0
) -> list:
    """Reads the part of a specification after the colon.

    Args:
        sampler: the sampler's class; its ``usage`` is shown on error.
        text: ``"8,6"``.
        kinds: ``int`` or ``float`` for each number.
        separator: between the numbers.
        optional: how many may be left out at the end.

    Raises:
        ConfigError: for any other form.
    """
    parts = [part.strip() for part in text.split(separator)]
    try:
        if not len(kinds) - optional <= len(parts) <= len(kinds):
            raise ValueError(len(parts))
        return [kind(part) for kind, part in zip(kinds, parts, strict=False)]
    except ValueError as error:
        raise ConfigError(
            f"a sampler is written {sampler.usage!r}, got {text!r} after the colon", "for example fixed:20"
        ) from error


def require_at_least(name: str, what: str, value: float, least: float) -> None:
    """Checks a number of steps or attempts.

    Raises:
        ConfigError: when it is too small, naming the sampler and the number.
    """
    if not value >= least:
        raise ConfigError(f"{name}: {what} must be at least {least}, got {value}", "raise it")
