"""Settings of an environment, checked before anything is loaded, and its models, loaded once per process."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from addiffusion_env.backbones import BACKBONES, traits_of
from addiffusion_env.backbones.base import Backbone, Capabilities, Load
from addiffusion_env.backbones.solvers import check_solver
from addiffusion_env.engine.lane import FaultCount
from addiffusion_env.engine.process import REFINE_PRESETS, ProcessConfig, RefineConfig
from addiffusion_env.errors import ConfigError, check_settings, nearest, unknown
from addiffusion_env.files import stamp_of
from addiffusion_env.observations import OBSERVATION_PRESETS, UTILITY, features_of
from addiffusion_env.prompts import PROMPT_SOURCES, Prompt, PromptList, PromptSource
from addiffusion_env.registry import load_object
from addiffusion_env.rewards import PRESET_COSTS
from addiffusion_env.scorers.image_scores import ImageScorers
from addiffusion_env.scorers.utility import Utility
from addiffusion_env.settings import Ge, check_types, present_keys, present_refine, present_settings

RENDER_MODES = ("rgb_array", "filmstrip", "human")
"""A frame with the preview, a filmstrip of the episode so far, a window; ``make`` also accepts ``rgb_array_list``."""


@dataclass(frozen=True)
class EnvSettings:
    """The keyword arguments of every environment id.

    Attributes:
        backbone: registry name, or a loaded :class:`Backbone`.
        name_or_path: hub id or folder of its weights; ``None`` for the backbone's default.
        device: ``auto``, ``cpu``, ``cuda`` ...
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        backbone_options: keyword arguments of the backbone's loader.
        pipe: a loaded diffusers pipeline, for ``backbone="diffusers"``; it is neither moved nor copied.
        pipeline_kwargs: arguments of the pipeline's ``__call__`` for every image (``negative_prompt``, ``height``,
            ``image`` ...), for ``backbone="diffusers"``; ``steps`` and ``guidance_scale``, where given, come before its
            ``num_inference_steps`` and scale of guidance.
        scorers: local folders or hub ids of the scorers of real images, by part (``clip``, ``image_reward``,
            ``image_reward_tokenizer``, ``dino``), and under ``preference`` the registry name of the preference scorer;
            see :mod:`addiffusion_env.scorers.hub_image_scores`. The emoji backbone accepts none.
        prompts: registry name of a prompt source, a list, or a :class:`PromptSource`; ``None`` for the backbone's.
        prompt_options: keyword arguments of the source (``{"split": "test"}``).
        steps: evaluations of the full schedule; ``None`` for the backbone's default, as for the next three.
        spacing: name of the timestep spacing.
        solver: name of the solver.
        guidance_scale: classifier-free guidance scale; 1 disables guidance.
        guidance_interval: ``[low, high]`` noise levels between which guidance is on; ``None`` guides everywhere.
        early_exit_steps: evaluations of *stop*, or ``"auto"``; see :class:`ProcessConfig`.
        decide_every: evaluations of one *continue*.
        decide_at: steps at which the policy decides, instead; those beyond the end of a shorter schedule are ignored.
        check_finished: whether the policy decides about the finished image before the episode ends.
        refine: a preset's name, or a mapping of :class:`RefineConfig` fields with an optional ``preset``.
        reward: a preset's name, or a mapping of terms; see :func:`rewards.make_reward`.
        cost_per_nfe: cost per NFE, or ``[low, high]`` to draw it per episode and observe it under the key
            ``cost_per_nfe``; ``None`` for that of the reward preset.
        observation_keys: a preset or a list of keys of :data:`observations.FEATURES`, such as ``attempts`` (the best
            finished image so far) and ``phrases`` (summary of the phrase maps). ``None`` is ``"standard"``: clip,
            timestep, quality. ``"denoiser"``: features, prompt, timestep, spent, none of which needs a preview.
            ``"denoiser_checked"``: in addition attempts and checked, from the scores of finished images. Presets
            include ``cost_per_nfe`` if it varies.
        max_faults: number of episodes that may be dropped (truncated, with ``info["fault"]``) because their lane alone
            failed (NaN, a scorer that raises) before the environment raises the error; 0 raises the first one.
        halve_lanes: whether to halve the batch of model calls, with a warning, when the device's memory runs out.
        max_decisions: truncates an episode after this many decisions; ``None`` for no limit.
        strict: whether an illegal action raises an error; otherwise *continue* is taken in its place.
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
            check_solver(self.solver)
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
            *others: further keywords of the caller, which the error may suggest.
            **kwargs: the fields.

        Raises:
            UnexpectedKeywordError: for an unknown keyword; suggests the nearest one.
        """
        kwargs = present_settings(kwargs)
        check_settings("environments have", kwargs, (*(item.name for item in fields(cls)), *others), keywords=True)
        return cls(**kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> EnvSettings:
        """Returns the same object: settings are immutable, and copies of an environment share a loaded backbone."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For pickle.

        Raises:
            ConfigError: for a loaded backbone or pipeline: only weights that are loaded by name can be pickled.
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
                    f"{name} needs backbone=diffusers, got backbone={self.backbone}",
                    "make AdDiffusion-Diffusers-v0, or leave it out",
                )
        if self.pipe is not None and (self.name_or_path is not None or self.dtype != "auto" or self.device != "auto"):
            raise ConfigError(
                "pipe is a loaded pipeline, and name_or_path, device or dtype was given as well",
                "give pipe alone, and move it with pipe.to(...)",
            )

    def load(self) -> Load:
        """The arguments of the backbone's loader."""
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
        bounds = [cost_per_nfe, cost_per_nfe] if isinstance(cost_per_nfe, int | float) else list(cost_per_nfe)
        if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] < math.inf:
            wanted = "a finite number or [low, high] with 0 <= low <= high"
            raise ConfigError(f"cost_per_nfe must be {wanted}, got {cost_per_nfe!r}", "use 0.01")
        return float(bounds[0]), float(bounds[1])

    def typical_cost(self) -> float:
        """The middle of the costs per NFE: their geometric mean, or half of the highest where the lowest is 0."""
        low, high = self.cost_range()
        return math.sqrt(low * high) if low else high / 2

    def keys(self) -> tuple[str, ...]:
        """The observation keys: those listed, or those of a preset, with ``cost_per_nfe`` if it varies.

        Raises:
            UnknownNameError: for an unknown preset.
        """
        asked = "standard" if self.observation_keys is None else self.observation_keys
        if not isinstance(asked, str):
            return tuple(present_keys(asked))
        if asked not in OBSERVATION_PRESETS:
            raise unknown("observation preset", asked, OBSERVATION_PRESETS)
        low, high = self.cost_range()
        return (*OBSERVATION_PRESETS[asked], "cost_per_nfe") if low < high else OBSERVATION_PRESETS[asked]

    def process(self, capabilities: Capabilities, name: str) -> ProcessConfig:
        """The decision process on a backbone, with its defaults filled in.

        Raises:
            CapabilityError: if the backbone does not support the settings.
            ConfigError: where a key shows the utility of previews that the calibrator was not fitted to.
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
        if any(key.needs_preview and UTILITY in key.shows for key in features_of(self.keys()).values()):
            refine.utility.check_steps(config.decision_steps)
        return config

    def _within(self, steps: int) -> tuple[tuple[int, ...] | None, RefineConfig]:
        """Adapts ``decide_at`` and ``refine`` to a schedule that may be shorter than they were written for.

        Steps beyond its end are ignored; ``refine.return_to`` is lowered to the first decision that is left.
        """
        refine = refine_config(self.refine)
        wanted = None if self.decide_at is None else tuple(self.decide_at)
        if wanted is None or not all(isinstance(step, int) and step >= 1 for step in wanted):
            return wanted, refine  # ProcessConfig raises for invalid ones
        inside = tuple(step for step in wanted if step < steps) or ((steps - 1,) if steps > 1 else None)
        if refine.return_to is not None and refine.return_to >= steps:
            refine = replace(refine, return_to=inside[0] if inside else None)
        return inside, refine

    def _interval(self) -> tuple[float, float] | None:
        if self.guidance_interval is None:
            return None
        bounds = tuple(self.guidance_interval)
        if len(bounds) != 2:
            raise ConfigError(
                f"guidance_interval must be [low, high], got {self.guidance_interval!r}", "null guides everywhere"
            )
        return float(bounds[0]), float(bounds[1])

    def prompt_source(self) -> PromptSource:
        """The source of prompts."""
        prompts = traits_of(self.backbone).prompts if self.prompts is None else self.prompts
        if isinstance(prompts, str):
            make = PROMPT_SOURCES.load(prompts)
            known = inspect.signature(make).parameters
            for key in self.prompt_options:
                if key not in known:
                    cause = f"prompt source {prompts!r} has no option {key!r}, got {dict(self.prompt_options)}"
                    raise ConfigError(cause, f"leave it out, also where the id adds it; {nearest(key, known)}")
            for key, item in known.items():
                if item.default is item.empty and item.kind != item.VAR_KEYWORD and key not in self.prompt_options:
                    raise ConfigError(f"prompt source {prompts!r} needs {key!r}", f"prompt_options={{{key}: VALUE}}")
            return make(**self.prompt_options)
        return prompts if isinstance(prompts, PromptSource) else PromptList(prompts)


def refine_config(refine: str | Mapping[str, Any] | RefineConfig) -> RefineConfig:
    """Builds a refinement from a preset's name or from fields.

    Raises:
        UnknownNameError: for an unknown preset.
        ConfigError: for an unknown field or an invalid combination.
    """
    if isinstance(refine, RefineConfig):
        return refine
    if isinstance(refine, str):
        preset: str = present_refine(refine)
        if preset not in REFINE_PRESETS:
            raise unknown("refine preset", preset, REFINE_PRESETS)
        return REFINE_PRESETS[preset]
    if not isinstance(refine, Mapping):
        raise ConfigError(
            f"refine must be a preset or a mapping, got {refine!r:.100}", "refine=resample, or {preset: resample}"
        )
    changes = present_refine(refine)
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
    """The backbone of these settings; the same object for the same settings and the same files."""
    if isinstance(settings.backbone, Backbone):
        return settings.backbone
    load = settings.load()
    # Arguments of a pipeline's call may be images and tensors, which cannot be cache keys.
    if settings.pipe is not None or "pipeline_kwargs" in load.options:
        return _of_pipeline(settings, load)
    options = tuple(
        (
            name,
            type(value),
            tuple(value) if isinstance(value, list) else value,
        )  # the type too: 16.0 must not hit the cache entry of 16
        for name, value in sorted(load.options.items())
    )
    stamps = _stamps(load.name_or_path, load.options.get("preview"))
    return _backbone(settings.backbone, load.name_or_path, load.device, load.dtype, options, stamps)


def named_backbone(name: str | Path, device: str = "auto") -> Backbone:
    """The backbone that a user names: one of the registry, or any diffusers pipeline by its folder, hub id or file.

    Args:
        name: a folder of that name comes before the registry.
        device: ``auto``, ``cpu``, ``cuda`` ...

    Raises:
        ConfigError: when the device is not available.
        WeightsError: when there is no such pipeline, or it does not load.
    """
    if str(name) in BACKBONES and not Path(name).is_dir():
        return load_backbone(EnvSettings(str(name), device=device))
    return load_backbone(EnvSettings("diffusers", str(name), device=device))


def _stamps(*values: Any) -> tuple:
    """Stamps of the folders among some settings, so that changed weights are loaded again."""
    return tuple(stamp_of(value) for value in values if isinstance(value, str | Path))


def _of_pipeline(settings: EnvSettings, load: Load) -> Backbone:
    """The backbone of a loaded pipeline, or of one with unhashable arguments; the last few are cached."""
    kind = BACKBONES.load(str(settings.backbone))
    for known, arguments, backbone in _PIPELINES:
        if known is settings.pipe and arguments == (load, settings.backbone_options):
            return backbone
    new = kind.from_pretrained(load) if settings.pipe is None else kind.from_pipeline(settings.pipe, **load.options)
    _PIPELINES.append((settings.pipe, (load, settings.backbone_options), new))
    del _PIPELINES[:-8]
    return new


_PIPELINES: list[tuple[object, object, Backbone]] = []
"""(pipeline, its settings, its backbone) of the most recent ones, shared by the environments of a process."""


@lru_cache(maxsize=8)
def _scorers(loader: str, device: str, paths: tuple, stamps: tuple) -> ImageScorers:
    scorers: ImageScorers = load_object(loader).load(device, dict(paths))
    return scorers


def clip_width(backbone: str, paths: Mapping[str, str] | None = None) -> int:
    """Width of the CLIP embedding of :func:`load_scorers`, without loading the scorers.

    Args:
        backbone: registry name of the backbone.
        paths: folders or hub ids of scorers in place of the defaults.

    Raises:
        UnknownNameError: for a CLIP model that open_clip does not know.
        WeightsError: for a folder without one.
    """
    return int(load_object(traits_of(backbone).scorers).clip_width(paths or {}))


def load_scorers(backbone: Backbone, paths: Mapping[str, str] | None = None) -> ImageScorers:
    """Loads the scorers for a backbone's images, as its traits name them.

    Args:
        backbone: the backbone.
        paths: folders or hub ids of scorers in place of the defaults; see :attr:`EnvSettings.scorers`.

    Raises:
        ConfigError: for a part that these scorers do not have.
        WeightsError: if a scorer cannot be loaded.
    """
    given = tuple(sorted((paths or {}).items()))
    return _scorers(backbone.traits.scorers, str(backbone.device), given, _stamps(*(paths or {}).values()))
