"""Arguments of a pipeline's ``__call__``: which exist, which the engine sets itself, which differ by prompt."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from addiffusion_env.errors import CapabilityError, ConfigError, nearest

OWNED = {
    "output_type": "it is given to the call of AdaptivePipeline",
    "return_dict": "the engine reads the output",
    "num_images_per_prompt": "it is given to the call of AdaptivePipeline",
    "callback_on_step_end": "it is given to the call of AdaptivePipeline",
    "callback_on_step_end_tensor_inputs": "it is given to the call of AdaptivePipeline",
    "callback": "use callback_on_step_end in the call of AdaptivePipeline",
    "callback_steps": "use callback_on_step_end in the call of AdaptivePipeline",
    "prompt": "prompts are given to the call of AdaptivePipeline, or as prompts= of the environment",
}
"""Arguments of pipelines that the engine sets itself, and what to use instead."""

STEP_LISTS = ("timesteps", "sigmas")
"""Arguments that list a schedule's steps, in place of ``num_inference_steps``."""

GUIDANCE = ("true_cfg_scale", "guidance_scale")
"""Names of the classifier-free guidance scale. Where both exist, the second is an input of a distilled network."""


def check_steps(arguments: Mapping[str, Any]) -> None:
    """Refuses a number of steps beside a list of another length, which the pipeline would take instead.

    Raises:
        ConfigError: with both numbers.
    """
    for name in STEP_LISTS:
        listed, steps = arguments.get(name), arguments["num_inference_steps"]
        if listed is not None and len(listed) != steps:
            raise ConfigError(
                f"{steps} steps would not take effect: {name} lists {len(listed)}", "leave out one of them"
            )


@dataclass(frozen=True)
class PipelineArguments:
    """The arguments that a pipeline is called with.

    Attributes:
        pipe: the pipeline.
        parameters: parameters of its ``__call__``.
        given: arguments that are the same for every image.
    """

    pipe: Any
    parameters: Mapping[str, inspect.Parameter]
    given: Mapping[str, Any]

    @classmethod
    def of(cls, pipe: Any, given: Mapping[str, Any]) -> PipelineArguments:
        """Checks arguments against the pipeline's signature.

        Raises:
            CapabilityError: for an object that is not a pipeline with prompts and steps.
            ConfigError: for an unknown argument, one that the engine sets itself, or a generator.
        """
        name = type(pipe).__name__
        if not callable(pipe) or not hasattr(pipe, "components") or getattr(pipe, "scheduler", None) is None:
            raise CapabilityError(
                f"{name} is not a diffusers pipeline with a scheduler",
                "pass a text-to-image pipeline, for example diffusers.AutoPipelineForText2Image.from_pretrained(...)",
            )
        parameters = dict(inspect.signature(type(pipe).__call__).parameters)
        for needed in ("prompt", "num_inference_steps"):
            if needed not in parameters:
                raise CapabilityError(
                    f"a {name} takes no {needed}",
                    "pass a text-to-image pipeline whose own __call__ takes prompt and num_inference_steps; of a "
                    "two-stage model, its decoder with the prior's output as arguments is not supported",
                )
        made = cls(pipe, parameters, dict(given))
        made.check(given)
        if given.get("generator") is not None:
            raise ConfigError(
                "one generator for every image: an image would depend on previous images",
                "pass generator= in the call, or seeds=",
            )
        return made

    def check(self, given: Mapping[str, Any]) -> None:
        """Checks the names of arguments, and that numbers and lists of steps are such.

        Raises:
            ConfigError: for an argument that the pipeline does not have, with the nearest name, one that the engine
                sets itself, or a value of another form.
        """
        for name in given:
            if name in OWNED:
                raise ConfigError(f"argument {name} of the pipeline cannot be set here", OWNED[name])
            if name not in self.parameters and not self.open_ended:
                known = [other for other in self.parameters if other not in ("self", "kwargs", *OWNED)]
                raise ConfigError(f"{type(self.pipe).__name__} has no argument {name!r}", nearest(name, known))
            if isinstance(given[name], list | tuple) and self._takes_one_number(name):
                raise ConfigError(f"{name} must be one number, got {given[name]!r:.60}", "call once for each value")
            if name in STEP_LISTS and given[name] is not None and not np.ndim(given[name]):
                raise ConfigError(f"{name} must be a list, got {given[name]!r:.60}", "num_inference_steps is a number")
            for value in given[name] if isinstance(given[name], list | tuple) else [given[name]]:
                if name.endswith("attention_kwargs") and isinstance(value, Mapping) and value.get("scale") == 0:
                    raise ConfigError(
                        f"scale=0 in {name} would leave adapters at full weight for all later calls (peft)",
                        "use pipe.disable_lora(), or pipe.set_adapters with weight 0",
                    )

    def _takes_one_number(self, name: str) -> bool:
        """Whether an argument's annotation allows nothing but a number."""
        parameter = self.parameters.get(name)
        words = set() if parameter is None else set(re.findall(r"\w+", str(parameter.annotation)))
        kinds = words - {"class", "typing", "Optional", "Union", "None", "NoneType"}
        return bool(kinds) and kinds <= {"int", "float", "bool"}

    @property
    def open_ended(self) -> bool:
        """Whether names outside the signature are accepted; the ``**kwargs`` of diffusers' own classes ignore them."""
        if type(self.pipe).__module__.startswith("diffusers."):
            return False
        return any(item.kind is inspect.Parameter.VAR_KEYWORD for item in self.parameters.values())

    @property
    def guidance_name(self) -> str | None:
        """Name of the classifier-free guidance scale; ``None`` if there is none."""
        return next((name for name in GUIDANCE if name in self.parameters), None)

    def value(self, name: str) -> Any:
        """The value of an argument: the given one, or the pipeline's default."""
        if name in self.given:
            return self.given[name]
        parameter = self.parameters.get(name)
        return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default

    @property
    def steps(self) -> int:
        """The number of steps of an unmodified run of the pipeline."""
        for name in STEP_LISTS:
            if self.given.get(name) is not None:
                return len(self.given[name])
        return int(self.value("num_inference_steps") or 50)

    def call(self, prompt: str | None, steps: int, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The arguments of one image's call.

        Raises:
            ConfigError: see :meth:`check`, for ``more``; and for another number of steps in it.
        """
        more = more or {}
        self.check(more)
        own = more.get("num_inference_steps", steps)
        if own != steps and all(more.get(name) is None for name in STEP_LISTS):
            raise ConfigError(
                f"num_inference_steps={own} of a prompt would not take effect: all images take {steps} steps",
                "give it to the call of AdaptivePipeline, or as steps= of the environment",
            )
        found = {**self.given, **more}
        if prompt is not None and found.get("prompt_embeds") is None:
            found["prompt"] = prompt
        found["num_inference_steps"] = steps
        if "output_type" in self.parameters:
            found["output_type"] = "pt"
        return found
