"""Diffusion models that can be driven one evaluation at a time. A new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from addiffusion_env.prompts import Prompt
from addiffusion_env.registry import Registry, load_object

BACKBONES = Registry(
    "backbone",
    {
        "emoji": "addiffusion_env.backbones.emoji:EmojiBackbone",
        "sd15": "addiffusion_env.backbones.sd15:SD15Backbone",
        "sd21": "addiffusion_env.backbones.sd21:SD21Backbone",
        "sdxl": "addiffusion_env.backbones.sdxl:SDXLBackbone",
        "flux": "addiffusion_env.backbones.flux:FluxBackbone",
        "sd35": "addiffusion_env.backbones.sd35:SD35Backbone",
        "flux2_klein": "addiffusion_env.backbones.flux2_klein:Flux2KleinBackbone",
        "z_image": "addiffusion_env.backbones.z_image:ZImageBackbone",
        "qwen_image": "addiffusion_env.backbones.qwen_image:QwenImageBackbone",
        "diffusers": "addiffusion_env.backbones.pipeline_backbone:PipelineBackbone",
    },
)


@dataclass(frozen=True)
class Traits:
    """What belongs to a backbone's images besides the model; the defaults are those of models from the hub.

    All of it is named, not imported: by registry names, or as ``"module:attribute"`` for what is loaded on first use.
    So a backbone may name what stands above it in the package, and naming costs no import.

    Attributes:
        prompts: registry name of the prompt source that is taken when none is given.
        test_options: keyword arguments of that source for the prompts of an evaluation, which no training draws.
        prompt_reader: ``"module:attribute"`` of a function that makes a :class:`.Prompt` of a user's text.
        scorers: ``"module:attribute"`` of the scorers of previews and finished images: a
            :class:`addiffusion_env.scorers.image_scores.ScorerLoader`.
        preference: registry name of the preference scorer among them, for messages and conflicts of interest.
        judges: registry names of the held-out judges of an evaluation that names none.
        world: whose words benchmarks write their prompts in: ``"any"`` leaves them as published.
        embedded: whether the weights come with the package.
        guide: ``"module:attribute"`` of what the demo says of the world, a :class:`addiffusion_lab.demo.prompts.Guide`;
            ``None`` for nothing in particular.
    """

    prompts: str = "emoji"
    test_options: Mapping[str, Any] = field(default_factory=lambda: {"split": "test"})
    prompt_reader: str = "addiffusion_env.prompts:Prompt.of"
    scorers: str = "addiffusion_env.scorers.hub_image_scores:HubScorers"
    preference: str = "image_reward"
    judges: tuple[str, ...] = ("hps",)
    world: str = "any"
    embedded: bool = False
    guide: str | None = None

    def read_prompt(self, text: str) -> Prompt:
        """A user's text as a prompt of this world.

        Raises:
            PromptError: when it is no text.
        """
        prompt: Prompt = load_object(self.prompt_reader)(text)
        return prompt


def traits_of(backbone: Any) -> Traits:
    """The traits of a :class:`.Backbone`, or of the one registered under a name; no weights are loaded.

    Raises:
        UnknownNameError: for a name that is not registered.
    """
    traits: Traits = (BACKBONES.load(backbone) if isinstance(backbone, str) else backbone).traits
    return traits
