"""Diffusion models that can be driven one denoiser evaluation at a time. A new one is one class and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from addiffusion_env.prompts import Prompt
from addiffusion_env.registry import Registry, load_object

BACKBONES = Registry(
    "backbone",
    {
        "emoji": "addiffusion_env.backbones.emoji:EmojiBackbone",
        "sd15": "addiffusion_env.backbones.named_pipelines:SD15Backbone",
        "sd21": "addiffusion_env.backbones.named_pipelines:SD21Backbone",
        "sdxl": "addiffusion_env.backbones.named_pipelines:SDXLBackbone",
        "flux": "addiffusion_env.backbones.named_pipelines:FluxBackbone",
        "sd35": "addiffusion_env.backbones.named_pipelines:SD35Backbone",
        "flux2_klein": "addiffusion_env.backbones.named_pipelines:Flux2KleinBackbone",
        "z_image": "addiffusion_env.backbones.named_pipelines:ZImageBackbone",
        "qwen_image": "addiffusion_env.backbones.named_pipelines:QwenImageBackbone",
        "diffusers": "addiffusion_env.backbones.pipeline_backbone:PipelineBackbone",
    },
)


class Identified:
    """A component whose identity is its content, by value.

    The default describes every attribute: modules by configuration, weights and adapters, tokenizers by vocabulary,
    plain values as they are; and the source code of a class that is not part of an installed package. That is correct
    for most user-defined components. Override :attr:`identity` if the results depend on state elsewhere, such as a
    server or an engine file, and list caches in ``not_identity``.

    Attributes:
        not_identity: attributes that do not affect results: caches, counters, hooks.
    """

    not_identity: ClassVar[tuple[str, ...]] = ()

    @property
    def identity(self) -> Mapping[str, Any]:
        """Plain JSON values that change whenever the component's results may change, and not by using it."""
        found: Mapping[str, Any] = load_object("addiffusion_env.backbones.identity:attributes_of")(self)
        return found


@dataclass(frozen=True)
class Traits:
    """The components that go with a backbone (prompts, scorers, judges); the defaults are those of hub models.

    They are named, not imported: by registry name, or as ``"module:attribute"`` for objects that are loaded on first
    use. A backbone may therefore name components of higher layers of the package, without importing them.

    Attributes:
        prompts: registry name of the default prompt source.
        test_options: keyword arguments of that source for evaluation prompts, which training never draws.
        prompt_reader: ``"module:attribute"`` of a function that turns a user's text into a :class:`.Prompt`.
        scorers: ``"module:attribute"`` of the scorers of previews and finished images: a
            :class:`addiffusion_env.scorers.image_scores.ScorerLoader`.
        preference: registry name of the preference scorer among them, for messages and the check for conflicts of
            interest.
        judges: registry names of the default held-out judges of an evaluation.
        world: vocabulary that benchmarks write their prompts in; ``"any"`` leaves them as published.
        embedded: whether the weights ship with the package.
        policy: name of the shipped policy that ``AdaptivePipeline`` uses without another one; ``None`` for the
            untrained default.
        guide: ``"module:attribute"`` of the demo's help texts, a :class:`addiffusion_lab.demo.prompts.Guide`; ``None``
            for none.
    """

    prompts: str = "emoji"
    test_options: Mapping[str, Any] = field(default_factory=lambda: {"split": "test"})
    prompt_reader: str = "addiffusion_env.prompts:Prompt.of"
    scorers: str = "addiffusion_env.scorers.hub_image_scores:HubScorers"
    preference: str = "image_reward"
    judges: tuple[str, ...] = ("hps",)
    world: str = "any"
    embedded: bool = False
    policy: str | None = None
    guide: str | None = None

    def read_prompt(self, text: str) -> Prompt:
        """Parses a user's text into a :class:`.Prompt`.

        Raises:
            PromptError: when it is not a string.
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
