"""Everything that an environment can be told, checked before anything is loaded, and what it loads, once a process."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from addiffusion_env.backbones import BACKBONES, traits_of
from addiffusion_env.backbones.base import Backbone, Capabilities, Load
from addiffusion_env.backbones.solvers import check_solver_name
from addiffusion_env.engine.lane import FaultCount
from addiffusion_env.engine.process import REFINE_PRESETS, ProcessConfig, RefineConfig
from addiffusion_env.errors import ConfigError, check_keywords, check_settings, nearest, unknown
from addiffusion_env.files import stamp_of
from addiffusion_env.observations.features import OBSERVATION_PRESETS
from addiffusion_env.old_names import present, present_settings
from addiffusion_env.prompts import PROMPT_SOURCES, Prompt, PromptList, PromptSource
from addiffusion_env.registry import load_object
from addiffusion_env.rewards import PRESET_COSTS
from addiffusion_env.scorers.image_scores import ImageScorers
from addiffusion_env.scorers.utility import Utility
from addiffusion_env.settings import Ge, check_types

RENDER_MODES = ("rgb_array", "filmstrip", "human")
"""The preview in a frame, a filmstrip of the episode so far, a window; ``make`` knows ``rgb_array_list`` as well."""


@dataclass(frozen=True)
class EnvSettings:
    """The keyword arguments of every environment id.

    Attributes:
        backbone: registry name, or a loaded :class:`Backbone`.
        name_or_path: hub id or folder of its weights; ``None`` is the backbone's own.
        device: ``auto``, ``cpu``, ``cuda`` ...
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        backbone_options: what a backbone passes through by name.
        pipe: a loaded diffusers pipeline, for ``backbone="diffusers"``; it stays where it is, its weights are shared.
        pipeline_kwargs: arguments of the pipeline's own ``__call__`` for every image (``negative_prompt``, ``height``,
            ``image`` ...), with ``backbone="diffusers"``.
        scorers: local folders or hub ids of the scorers behind a look at real images, by part (``clip``,
            ``image_reward``, ``image_reward_tokenizer``, ``dino``), and under ``preference`` the registry name of the
            preference scorer; see :mod:`addiffusion_env.scorers.hub_image_scores`. The emoji world takes none.
        prompts: a source's registry name, a list, or a :class:`PromptSource`; ``None`` is the backbone's own source.
        prompt_options: keyword arguments of the source (``{"split": "test"}``).
        steps: evaluations of the full schedule; ``None`` is the backbone's own, as for the next three.
        spacing: name of the timestep spacing.
        solver: name of the solver.
        guidance_scale: classifier-free guidance; 1 is none.
        guidance_interval: ``[low, high]`` noise levels between which guidance is on; ``None`` guides everywhere.
        early_exit_steps: evaluations that *stop* spends, or ``"auto"``; see :class:`ProcessConfig`.
        decide_every: evaluations that one *continue* takes.
        decide_at: steps where the policy is asked, instead; those behind the end of a shorter schedule are left out.
        check_finished: whether the finished image is looked at before it is given away.
        refine: a preset's name, or a mapping of :class:`RefineConfig` fields with an optional ``preset``.
        reward: a preset's name, or a mapping of terms; see :func:`rewards.make_reward`.
        cost_per_nfe: cost per NFE, or ``[low, high]`` to draw it per episode and show it under the key ``cost_per_nfe``; ``None`` is
            the reward preset's own.
        observation_keys: ``None`` is clip, timestep, quality, and cost per NFE when it varies; ``"denoiser"`` is features,
            prompt, timestep, spent, and cost per NFE when it varies: nothing that needs a preview; ``"denoiser_checked"`` adds
            tries and checked, what scorers said of finished images; or a list of keys of
            :data:`observations.features.FEATURES`: ``attempts`` (the best finished image so far) and ``phrases`` (what
            phrase maps said) are there to be asked for.
        reference_steps: steps of the reference schedule that a relative terminal bonus compares with.
        max_faults: episodes that may be dropped, truncated with ``info["fault"]``, because their lane alone failed
            (NaN, a scorer that raises) before the environment raises the error; 0 raises the first.
        halve_lanes: when the device's memory runs out, make model calls for half as many lanes, with a warning.
        max_decisions: truncate an episode after so many decisions; ``None`` for no limit.
        strict: refuse an illegal action instead of continuing in its place.
        render_mode: ``None`` or one of :data:`RENDER_MODES`.
    """

    backbone: str | Backbone = "emoji"
    name_or_path: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    pipe: Any = None
    pipeline_kwargs: Mapping[str, Any] = field(default_factory=dict)
    scorers: Mapping[str, str] = field(default_factory=dict)
    prompts: str | Sequence[str | Prompt] | PromptSource | None = None
    prompt_options: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    spacing: str | None = None
    solver: str | None = None
    guidance_scale: float | None = None
    guidance_interval: Sequence[float] | None = None
    early_exit_steps: int | str = "auto"
    decide_every: int = 1
    decide_at: Sequence[int] | None = None
    check_finished: bool = False
    refine: str | Mapping[str, Any] | RefineConfig = "as_published"
    reward: str | Mapping[str, Any] = "default"
    cost_per_nfe: float | Sequence[float] | None = None
    observation_keys: str | Sequence[str] | None = None
    reference_steps: int | None = None
    max_faults: int = 0
    halve_lanes: bool = False
    max_decisions: Annotated[int | None, Ge(1)] = None
    strict: bool = False
    render_mode: str | None = None

    def __post_init__(self) -> None:
        check_types("", self)
        FaultCount(self.max_faults)
        if isinstance(self.backbone, str):
            BACKBONES[self.backbone]
        if self.solver is not None:
            check_solver_name(self.solver)
        self._check_pipe()
        if self.render_mode is not None and self.render_mode not in RENDER_MODES:
            raise unknown("render_mode", str(self.render_mode), RENDER_MODES)
        if self.scorers:
            load_object(traits_of(self.backbone).scorers).check(self.scorers)
        refine_config(self.refine)
        self.cost_range()
        self.keys()

    @classmethod
    def of(cls, *others: str, **kwargs: Any) -> EnvSettings:
        """Builds settings from keyword arguments.

        Args:
            *others: further keywords that the caller takes, for the error's nearest name.
            **kwargs: the fields.

        Raises:
            UnexpectedKeywordError: for a keyword that does not exist, with the nearest one.
        """
        kwargs = present_settings(kwargs)
        check_keywords("environments have", kwargs, (*(item.name for item in fields(cls)), *others))
        return cls(**kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> EnvSettings:
        """Never changed: copies of an environment share them, and a loaded backbone in them."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For pickle.

        Raises:
            ConfigError: for a loaded backbone or pipeline: weights travel by the name that they are loaded by.
        """
        loaded = self.pipe if isinstance(self.backbone, str) else self.backbone
        if loaded is not None:
            raise ConfigError(
                f"an environment with a loaded backbone ({type(loaded).__name__}) cannot be pickled",
                "name the backbone and its weights (backbone=, name_or_path=), or keep env.state_dict() instead",
            )
        return self.__dict__

    def _check_pipe(self) -> None:
        for name in ("pipe", "pipeline_kwargs"):
            if getattr(self, name) not in (None, {}) and self.backbone != "diffusers":
                raise ConfigError(
                    f"{name} is for backbone=diffusers, got backbone={self.backbone}",
                    "make AdDiffusion-Diffusers-v0, or leave it out",
                )
        if self.pipe is not None and (self.name_or_path is not None or self.dtype != "auto" or self.device != "auto"):
            raise ConfigError(
                "pipe is a loaded pipeline, and name_or_path, device or dtype was given beside it",
                "give pipe alone, moved with pipe.to(...)",
            )

    def load(self) -> Load:
        """What the backbone's loader is told."""
        options = dict(self.backbone_options)
        if self.pipeline_kwargs:
            options["pipeline_kwargs"] = self.pipeline_kwargs
        return Load(self.name_or_path, self.device, self.dtype, options)

    def cost_range(self) -> tuple[float, float]:
        """Lowest and highest cost per NFE; equal when it is fixed.

        Raises:
            ConfigError: unless 0 <= low <= high.
        """
        if self.cost_per_nfe is None:
            preset = self.reward if isinstance(self.reward, str) else self.reward.get("preset")
            cost_per_nfe: float | Sequence[float] = PRESET_COSTS.get(str(preset), 0.0)
        else:
            cost_per_nfe = self.cost_per_nfe
        ends = [cost_per_nfe, cost_per_nfe] if isinstance(cost_per_nfe, int | float) else list(cost_per_nfe)
        if len(ends) != 2 or not 0 <= ends[0] <= ends[1]:
            raise ConfigError(
                f"cost_per_nfe must be a number or [low, high] with 0 <= low <= high, got {cost_per_nfe!r}", "use 0.01"
            )
        return float(ends[0]), float(ends[1])

    def keys(self) -> tuple[str, ...]:
        """The observation keys: those listed, or those of a preset and ``cost_per_nfe`` when it varies.

        Raises:
            UnknownNameError: for an unknown preset.
        """
        asked = "standard" if self.observation_keys is None else self.observation_keys
        if not isinstance(asked, str):
            return tuple(present("observation key", key) for key in asked)
        if asked not in OBSERVATION_PRESETS:
            raise unknown("observation preset", asked, OBSERVATION_PRESETS)
        low, high = self.cost_range()
        return (*OBSERVATION_PRESETS[asked], "cost_per_nfe") if low < high else OBSERVATION_PRESETS[asked]

    def process(self, capabilities: Capabilities, name: str) -> ProcessConfig:
        """The decision process on a backbone, its defaults filled in.

        Raises:
            CapabilityError: when the backbone cannot do what is asked.
        """
        steps = capabilities.default_steps if self.steps is None else self.steps
        decide_at, refine = self._within(steps)
        config = ProcessConfig(
            steps=steps,
            spacing=self.spacing or capabilities.default_spacing,
            solver=self.solver or capabilities.default_solver,
            guidance_scale=capabilities.default_guidance if self.guidance_scale is None else self.guidance_scale,
            guidance_interval=self._interval(),
            early_exit_steps=self.early_exit_steps,
            decide_every=self.decide_every,
            decide_at=decide_at,
            check_finished=self.check_finished,
            refine=refine,
            network_calls=capabilities.network_calls,
        )
        config.check(capabilities, name)
        return config

    def _within(self, steps: int) -> tuple[tuple[int, ...] | None, RefineConfig]:
        """``decide_at`` and ``refine`` on a schedule that may be shorter than they were written for.

        Steps behind its end are left out; a new try comes back no later than at the first decision that is left.
        """
        refine = refine_config(self.refine)
        wanted = None if self.decide_at is None else tuple(self.decide_at)
        if wanted is None or not all(isinstance(step, int) and step >= 1 for step in wanted):
            return wanted, refine  # ProcessConfig says what is wrong with them
        inside = tuple(step for step in wanted if step < steps) or ((steps - 1,) if steps > 1 else None)
        if refine.return_to is not None and refine.return_to >= steps:
            refine = replace(refine, return_to=inside[0] if inside else None)
        return inside, refine

    def _interval(self) -> tuple[float, float] | None:
        if self.guidance_interval is None:
            return None
        ends = tuple(self.guidance_interval)
        if len(ends) != 2:
            raise ConfigError(
                f"guidance_interval must be [low, high], got {self.guidance_interval!r}", "null guides everywhere"
            )
        return float(ends[0]), float(ends[1])

    def prompt_source(self) -> PromptSource:
        """Where prompts come from."""
        prompts = traits_of(self.backbone).prompts if self.prompts is None else self.prompts
        if isinstance(prompts, str):
            make = PROMPT_SOURCES.load(prompts)
            known = list(inspect.signature(make).parameters)
            for key in self.prompt_options:
                if key not in known:
                    raise ConfigError(f"prompt source {prompts!r} has no option {key!r}", nearest(key, known))
            return make(**self.prompt_options)
        return prompts if isinstance(prompts, PromptSource) else PromptList(prompts)


def refine_config(refine: str | Mapping[str, Any] | RefineConfig) -> RefineConfig:
    """A refinement from a preset's name or from fields.

    Raises:
        UnknownNameError: for an unknown preset.
        ConfigError: for an unknown field or an impossible combination.
    """
    if isinstance(refine, RefineConfig):
        return refine
    if isinstance(refine, str):
        refine = present("refine preset", refine)
        if refine not in REFINE_PRESETS:
            raise unknown("refine preset", refine, REFINE_PRESETS)
        return REFINE_PRESETS[refine]
    if not isinstance(refine, Mapping):
        raise ConfigError(
            f"refine must be a preset or a mapping, got {refine!r:.100}", "refine=retry, or {preset: retry}"
        )
    changes = present_settings({"refine": refine})["refine"]
    base = refine_config(str(changes.pop("preset", "as_published")))
    check_settings("refine has", changes, (item.name for item in fields(base)))
    if "utility" in changes:
        changes["utility"] = Utility.of(changes["utility"])
    return replace(base, **changes)


@lru_cache(maxsize=8)
def _backbone(name: str, name_or_path: str | None, device: str, dtype: str, options: tuple, stamps: tuple) -> Backbone:
    given = {option: value for option, _, value in options}
    return BACKBONES.load(name).from_pretrained(Load(name_or_path, device, dtype, given))


def load_backbone(settings: EnvSettings) -> Backbone:
    """The backbone of some settings; the same object for the same settings and the same files."""
    if isinstance(settings.backbone, Backbone):
        return settings.backbone
    load = settings.load()
    # Arguments of a pipeline's call may be images and tensors, which no cache can compare.
    if settings.pipe is not None or "pipeline_kwargs" in load.options:
        return _of_pipeline(settings, load)
    options = tuple(
        (name, type(value), tuple(value) if isinstance(value, list) else value)  # 16.0 is refused also after 16
        for name, value in sorted(load.options.items())
    )
    stamps = _stamps(load.name_or_path, load.options.get("preview"))
    return _backbone(settings.backbone, load.name_or_path, load.device, load.dtype, options, stamps)


def _stamps(*values: Any) -> tuple:
    """What the folders among some settings hold, so that weights written anew are loaded anew."""
    return tuple(stamp_of(value) for value in values if isinstance(value, str | Path))


def _of_pipeline(settings: EnvSettings, load: Load) -> Backbone:
    """The backbone of a loaded pipeline, or of one with arguments that no cache can compare; kept with its settings."""
    kind = BACKBONES.load(str(settings.backbone))
    for known, arguments, backbone in _PIPELINES:
        if known is settings.pipe and arguments == (load, settings.backbone_options):
            return backbone
    made = kind.from_pretrained(load) if settings.pipe is None else kind.from_pipeline(settings.pipe, **load.options)
    _PIPELINES.append((settings.pipe, (load, settings.backbone_options), made))
    del _PIPELINES[:-8]
    return made


_PIPELINES: list[tuple[object, object, Backbone]] = []
"""(pipeline, its settings, its backbone) of the last few, so that the environments of a process share them."""


@lru_cache(maxsize=8)
def _scorers(loader: str, device: str, paths: tuple, stamps: tuple) -> ImageScorers:
    scorers: ImageScorers = load_object(loader).load(device, dict(paths))
    return scorers


def clip_width(backbone: str, paths: Mapping[str, str] | None = None) -> int:
    """Width of the CLIP embedding of :func:`load_scorers`, without loading them.

    Args:
        backbone: its registry name.
        paths: what to take for its own scorers.

    Raises:
        UnknownNameError: for a CLIP that open_clip does not know.
        WeightsError: for a folder that holds none.
    """
    return int(load_object(traits_of(backbone).scorers).clip_width(paths or {}))


def load_scorers(backbone: Backbone, paths: Mapping[str, str] | None = None) -> ImageScorers:
    """The scorers of a backbone's images, as its traits name them.

    Args:
        backbone: whose images.
        paths: what to take for its own scorers; see :attr:`EnvSettings.scorers`.

    Raises:
        ConfigError: for paths that these scorers do not take.
        WeightsError: when a scorer cannot be had.
    """
    given = tuple(sorted((paths or {}).items()))
    return _scorers(backbone.traits.scorers, str(backbone.device), given, _stamps(*(paths or {}).values()))
