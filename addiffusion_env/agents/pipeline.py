"""`AdaptivePipeline`: prompts in, images out, each with as many evaluations as its policy chooses."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from tqdm.auto import tqdm

from addiffusion_env.agents.inputs import (
    Numbers,
    Prompts,
    Seeds,
    check_seeds,
    listed,
    make_jobs,
    take_prompts,
    with_pipeline_kwargs,
)
from addiffusion_env.agents.make import make_policy, model_settings, policy_and_model
from addiffusion_env.agents.outputs import Generated, ImageStream, PipelineOutput, check_output_type, collect, in_order
from addiffusion_env.agents.saved_policy import SavedPolicy
from addiffusion_env.agents.trace import Job, StepCallback, StepCalls, check_callback, traced
from addiffusion_env.agents.untrained import default_policy, default_process
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.engine import Counters
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.envs.settings import EnvSettings, clip_width, load_backbone, load_scorers
from addiffusion_env.errors import ConfigError
from addiffusion_env.plugins import load_plugins
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.base import Sampler, placed
from addiffusion_env.samplers.traits import Traits
from addiffusion_env.scorers.image_scores import ImageScorers, NoScorers


class AdaptivePipeline:
    """Text-to-image with a policy that decides after every step whether to continue, stop or refine.

    >>> from addiffusion_env import AdaptivePipeline
    >>> pipe = AdaptivePipeline.from_pretrained("emoji", policy="fixed:4")
    >>> out = pipe(["a photo of a dog", "two red cups"], seeds=[0, 1])
    >>> out.images[0].size, out.nfe.tolist()
    ((64, 64), [4.0, 4.0])

    To wrap a loaded diffusers pipeline, use ``AdaptivePipeline(pipe)`` or ``AdaptivePipeline(pipe, "fixed:20")``: the
    weights are shared with ``pipe``. Without a policy it checks its images (:func:`.untrained.default_policy`).
    Options of the wrapper (previews, compilation) are those of the backbone's ``from_pipeline``; the backbone that it
    returns can be passed instead of the pipeline.

    Args:
        model: any text-to-image pipeline of diffusers, or a :class:`Backbone`.
        policy: ``None`` for checked attempts on the pipeline's own schedule; a sampler; a specification of one without
            learning (``"fixed:20"``, ``"stop:12"``, ``"oracle"``); or the name, folder or hub id of a trained or
            calibrated policy; or a model of Stable-Baselines3, or its zip.
        process: the decision process of a policy without learning; ``None`` is the model's own schedule without
            refinement. A trained policy brings its own.
        scorers: score previews and finished images; ``None`` uses the model's default, or none for samplers
            that read no score.
        max_lanes: how many images are generated at once.
        trust: whether a zip of Stable-Baselines3 may be unpickled, which can run any code.
        plugins: modules to import first, which register the samplers, observations ... that the policy needs. The
            plugins of a run's folder are imported automatically; those of any other policy never are.

    Attributes:
        backbone: the model.
        sampler: the policy.
        process: the decision process, which defines what actions do.
        scorers: score what the policy observes.
        max_lanes: see above.

    Raises:
        CapabilityError: when no backbone supports the pipeline, or the model lacks a capability that the policy needs.
        ConfigError: when the policy was trained on observations of another width, or is trained and a process is given;
            for a number of lanes below 1.
        WeightsError: when the policy or the scorers cannot be loaded.
    """

    def __init__(
        self,
        model: Any,
        policy: str | Path | Sampler | BaseAlgorithm | None = None,
        process: ProcessConfig | None = None,
        scorers: ImageScorers | None = None,
        max_lanes: int = 16,
        trust: bool = False,
        plugins: Sequence[str] = (),
    ) -> None:
        Numbers(max_lanes)
        load_plugins(plugins)
        self.backbone: Backbone = model if isinstance(model, Backbone) else PipelineBackbone(model)
        if policy is None and process is None:
            policy = self.backbone.traits.policy
        self.sampler: Sampler
        if policy is None:
            self.sampler, scorers = default_policy(self.backbone, scorers)
            process = process or default_process(self.backbone)
        else:
            self.sampler = make_policy(policy, trust)
        if process is not None and isinstance(self.sampler, SavedPolicy):
            raise ConfigError(
                f"policy {self.sampler.name!r} only supports the process that it was trained on, "
                "but process= was given",
                "leave process= out",
            )
        if isinstance(self.sampler, SavedPolicy):  # before gigabytes of scorers are loaded
            can, name = self.backbone.capabilities, self.backbone.name
            width = scorers.clip_dim if scorers else clip_width(name)
            self.sampler.check_fits(name, width, can.feature_dim or 0)
            self.sampler.settings().process(can, name)
        self.scorers = scorers or (load_scorers(self.backbone) if reads_scores(self.sampler) else NoScorers())
        self.max_lanes = max_lanes
        self.sampler.bind(self.backbone, self.scorers)
        self._base = process
        self._progress_bar_config = dict(getattr(model, "_progress_bar_config", None) or {"disable": None})
        self.process = self._own_process()

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | Path,
        policy: str | Path | Sampler | BaseAlgorithm | None = None,
        device: str = "auto",
        *,
        backbone: str | Any | None = None,
        max_lanes: int = 16,
        trust: bool = False,
        plugins: Sequence[str] = (),
        **hub: Any,
    ) -> AdaptivePipeline:
        """Loads a policy and its model.

        Args:
            name_or_dir: ``"emoji"`` (ships with the package), a folder that ``train_sb3.py`` or :meth:`save_pretrained`
                wrote, a hub id (``"owner/name"``), a zip of :func:`.export_zip`; or, together with ``policy``, a model:
                a backbone's name, or the folder or hub id of a diffusers pipeline.
            policy: another policy on that model: ``"fixed:20"``, ``"stop:6"``, ``"oracle"``, or a trained one, also as
                a model of Stable-Baselines3 or its zip.
            device: ``auto``, ``cpu``, ``cuda``, ``mps`` ...
            backbone: the model in place of the policy's own: a registry name, a folder or hub id of a checkpoint of the
                same kind, a loaded diffusers pipeline, or a :class:`Backbone`. The last two stay on their device.
            max_lanes: how many images are generated at once.
            trust: whether a zip of Stable-Baselines3 may be unpickled, which can run any code.
            plugins: modules to import first; see the class.
            **hub: ``revision``, ``cache_dir``, ``token``, ``force_download``, ``local_files_only``, for a hub id.

        Raises:
            UnknownNameError: when there is no such policy, folder or backbone.
            ConfigError: for a model without a policy, a policy that does not fit it, or a number of lanes below 1.
            UntrustedFileError: for a zip without ``trust``.
            WeightsError: when files are missing, damaged, or cannot be downloaded from the hub.
        """
        Numbers(max_lanes)  # before gigabytes of model are loaded
        load_plugins(plugins)
        sampler, known = policy_and_model(name_or_dir, policy, trust, **hub)
        settings = EnvSettings.of(
            **model_settings({"backbone": EnvSettings.backbone, **known}, backbone), device=device
        )
        model = settings if backbone is None or isinstance(backbone, str | Path) else backbone
        made = None if model is settings else model if isinstance(model, Backbone) else PipelineBackbone(model)
        name = str(settings.backbone) if made is None else made.name
        if isinstance(sampler, SavedPolicy):  # before gigabytes of model and scorers are loaded
            sampler.check_fits(name, clip_width(name, settings.scorers if name == settings.backbone else None))
        made = made or load_backbone(settings)
        own = bool(settings.scorers) and name == settings.backbone and reads_scores(sampler)
        scorers = load_scorers(made, settings.scorers) if own else None
        return cls(made, sampler, scorers=scorers, max_lanes=max_lanes)

    def __call__(
        self,
        prompts: Prompts | None = None,
        seeds: Seeds = None,
        cost_per_nfe: float | None = None,
        target_nfe: float | None = None,
        output_type: str = "pil",
        *,
        num_images_per_prompt: int = 1,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_trace: bool = False,
        **pipeline_kwargs: Any,
    ) -> PipelineOutput:
        """Generates images for one prompt or a list of prompts.

        Args:
            prompts: one prompt or a list of N; ``prompt=``, as in diffusers, is the same.
            seeds: one per image, prompt by prompt; or one number ``s`` for seeds ``s``, ``s + 1``, ... of every
                prompt's images; 0 when not given. An image is a function of its prompt and seed, not of the list.
                Beside ``latents`` they decide the other noise: of stochastic schedulers, refinements and other
                attempts; beside ``generator`` that of the last two.
            cost_per_nfe: cost of one NFE; a higher one spends less. Only learned policies have one.
            target_nfe: the mean NFE to aim at instead; converted to a cost per NFE by the policy's measured frontier.
            output_type: ``"pil"``, ``"np"`` or ``"pt"``.
            num_images_per_prompt: k; the images of a prompt stand together.
            callback_on_step_end: ``callback(pipe, step, timestep, callback_kwargs) -> dict``, called once per image and
                step; see :class:`addiffusion_env.agents.trace.StepCalls`.
            callback_on_step_end_tensor_inputs: tensors passed to the callback: ``latents``, ``x0``.
            return_trace: keep every decision with its preview and probabilities.
            **pipeline_kwargs: arguments of the diffusers pipeline's own ``__call__``: ``negative_prompt``,
                ``guidance_scale``, ``num_inference_steps``, ``height``, ``width``, ``generator``, ``latents``,
                ``image`` ...; one value for all, or for per-prompt arguments a list (or the rows of a tensor) with one
                value per prompt. See :mod:`addiffusion_env.agents.inputs`.

        Raises:
            PromptError: for no prompt, or one that does not fit the text window.
            ConfigError: for a number of seeds other than of images, cost per NFE and target together, a cost per NFE
                for a policy that has none, a number out of its range, or an argument that the pipeline does not have or
                that would not take effect.
            UnknownNameError: for an unknown output type.
            NumericsError: for an image that is not finite; the others of the call are lost (a stream keeps those that
                it has yielded).
        """
        check_output_type(output_type)
        self._refresh()
        Numbers(self.max_lanes, num_images_per_prompt, cost_per_nfe=cost_per_nfe, target_nfe=target_nfe)
        texts, read = listed(take_prompts(prompts, pipeline_kwargs)), self.backbone.traits.read_prompt
        process = self.process
        if pipeline_kwargs:
            known = [read(text) if isinstance(text, str) else Prompt.of(text) for text in texts]
            process, texts[:] = with_pipeline_kwargs(
                self.backbone, self.sampler, self._own, process, known, num_images_per_prompt, pipeline_kwargs
            )
        jobs = list(self._jobs(texts, seeds, num_images_per_prompt, process))
        callback, tensors = callback_on_step_end, callback_on_step_end_tensor_inputs
        sampler, lanes = self._with_cost(cost_per_nfe, target_nfe), min(self.max_lanes, len(jobs))
        made, counters = self._run(jobs, sampler, process, callback, tensors, return_trace, lanes)
        shown = tqdm(made, total=len(jobs), unit="image", **self._progress_bar_config)
        return collect(list(in_order(iter(shown))), output_type, counters.utilisation)

    def stream(
        self,
        prompts: Prompts | None = None,
        seeds: Seeds = None,
        cost_per_nfe: float | None = None,
        target_nfe: float | None = None,
        output_type: str = "pil",
        *,
        num_images_per_prompt: int = 1,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_trace: bool = False,
        ordered: bool = False,
        max_lanes: int | None = None,
        decode_batch: int = 4,
        **others: Any,
    ) -> ImageStream:
        """Generates images for any number of prompts and yields each when it is ready.

        Every denoiser call serves all lanes, whether they take a step, exit early or refine; a lane that is finished
        takes the next prompt before the next call. Arguments have the same meaning as in :meth:`__call__`.

        Args:
            prompts: any iterable, also an infinite one: a prompt is taken when a lane is free.
            seeds: as for a call; an iterable is consumed along with the prompts.
            cost_per_nfe: see :meth:`__call__`.
            target_nfe: see :meth:`__call__`.
            output_type: see :meth:`__call__`.
            num_images_per_prompt: see :meth:`__call__`.
            callback_on_step_end: see :meth:`__call__`.
            callback_on_step_end_tensor_inputs: see :meth:`__call__`.
            return_trace: see :meth:`__call__`.
            ordered: yield in the prompts' order, not in order of completion; images that are ready early wait in
                memory.
            max_lanes: images in progress at once; ``None`` uses the pipeline's value.
            decode_batch: finished images that are decoded together, outside the lanes.
            **others: ``prompt`` for ``prompts``; arguments of the diffusers pipeline are refused.

        Returns:
            An iterator of :class:`StreamedImage`; its ``utilisation`` is the share of busy lanes.

        Raises:
            ConfigError: as :meth:`__call__`; errors that appear only during iteration (a prompt that is too long, seeds
                that end early) are raised by the iterator.
        """
        check_output_type(output_type)
        self._refresh()
        lanes = self.max_lanes if max_lanes is None else max_lanes
        Numbers(lanes, num_images_per_prompt, decode_batch, cost_per_nfe, target_nfe)
        prompts = take_prompts(prompts, others)
        if others:
            raise ConfigError(
                f"a stream takes no argument {next(iter(others))}",
                "give arguments of the pipeline where it is wrapped (PipelineBackbone(pipe, {'height': 512})), or call "
                "AdaptivePipeline",
            )
        jobs = self._jobs(prompts, seeds, num_images_per_prompt, self.process)
        callback, tensors = callback_on_step_end, callback_on_step_end_tensor_inputs
        sampler = self._with_cost(cost_per_nfe, target_nfe)
        made, counters = self._run(jobs, sampler, self.process, callback, tensors, return_trace, lanes, decode_batch)
        return ImageStream(made, counters, output_type, ordered)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the policy (weights, configuration, model card); the model is referenced by name, not copied.

        Raises:
            ConfigError: for a policy without learning, which has no weights.
            RunFolderError: when the folder cannot be written.
        """
        self._trained().save_pretrained(folder)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads what :meth:`save_pretrained` writes; returns the commit's URL.

        Args:
            repo_id: ``"owner/name"``; created if missing.
            **options: see :meth:`.SavedPolicy.push_to_hub`: ``private``, ``token``, ``commit_message`` ...

        Raises:
            ConfigError: as :meth:`save_pretrained`.
            WeightsError: when the hub cannot be reached or refuses.
        """
        return self._trained().push_to_hub(repo_id, **options)

    def _trained(self) -> SavedPolicy:
        if not isinstance(self.sampler, SavedPolicy):
            raise ConfigError(f"policy {self.sampler.name!r} has no weights to save", "pass it when loading: policy=")
        return self.sampler

    def _jobs(self, prompts: Prompts, seeds: Seeds, images: int, process: ProcessConfig) -> Iterator[Job]:
        jobs = make_jobs(prompts, seeds, images, self.backbone.traits.read_prompt)
        return jobs if seeds is None else check_seeds(jobs, self.sampler, process)

    def _run(
        self,
        jobs: Iterable[Job],
        sampler: Sampler,
        process: ProcessConfig,
        callback: StepCallback | None,
        tensors: Sequence[str],
        return_trace: bool,
        max_lanes: int,
        decode_batch: int = 4,
    ) -> tuple[Generator[Generated, None, None], Counters]:
        """Finished images in order of completion, and the counters of the engine that generates them."""
        check_callback(callback, tensors)
        calls = None if callback is None else partial(StepCalls, self, self.backbone, callback, tuple(tensors))
        engine = Engine(self.backbone, self.scorers, solver=process.solver, decider=sampler.decide)
        coroutines = (traced(job, sampler, process, self.backbone, calls, return_trace) for job in jobs)
        stream = engine.stream(coroutines, max_lanes, decode_batch)
        return (made for _, made in stream), engine.counters

    def to(self, *args: Any, **kwargs: Any) -> AdaptivePipeline:
        """Moves the model, like ``to`` of a diffusers pipeline; returns the pipeline itself.

        Raises:
            CapabilityError: for a model that cannot be moved after loading.
        """
        self.backbone.to(*args, **kwargs)
        self._refresh()
        return self

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Settings of the progress bar over images, as in diffusers: ``disable=True``, ``desc``, ``leave`` ..."""
        self._progress_bar_config = kwargs

    def _refresh(self) -> None:
        """Updates the backbone from changes to the wrapped model: its device, precision, components, scheduler."""
        before = self.backbone.capabilities
        self.backbone.refresh()
        if self.backbone.capabilities is not before:
            self.sampler.bind(self.backbone, self.scorers)
            self.process = self._own_process()

    def _own_process(self) -> ProcessConfig:
        can, name = self.backbone.capabilities, self.backbone.name
        self._own = self._base or EnvSettings(refine="off").process(can, name)
        return placed(self.sampler, self._own, self.backbone)

    def _with_cost(self, cost_per_nfe: float | None, target_nfe: float | None) -> Sampler:
        if cost_per_nfe is None and target_nfe is None:
            return self.sampler
        if not isinstance(self.sampler, SavedPolicy) or not self.sampler.varies_cost:
            has = "was made at one" if isinstance(self.sampler, SavedPolicy) else "has no"
            raise ConfigError(
                f"policy {self.sampler.name!r} {has} cost per NFE", "leave out cost_per_nfe and target_nfe"
            )
        chosen = cost_per_nfe
        if chosen is None:
            chosen = self.sampler.cost_per_nfe_for(target_nfe or 0, self.backbone, self.scorers)
        if not np.isfinite(chosen):
            raise ConfigError(
                f"cost_per_nfe must be finite, got {chosen}",
                f"up to {self.sampler.config.highest_cost_per_nfe:g} was measured",
            )
        sampler = replace(self.sampler, cost_per_nfe=float(chosen))  # type: ignore[type-var]
        sampler.bind(self.backbone, self.scorers)
        return sampler


def reads_scores(sampler: Sampler) -> bool:
    """Whether a sampler reads scores; assumed for one that declares nothing or was trained."""
    traits = Traits.of(sampler)
    return traits.learned or bool(traits.scores_used)
