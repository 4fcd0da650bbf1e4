"""`AdaptivePipeline`: prompts in, pictures out, each with as many evaluations as its policy saw fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from addiffusion_env.agents.learned import LearnedMethod
from addiffusion_env.agents.policy_file import PRETRAINED, find_policy, load_config
from addiffusion_env.backbones import BACKBONES
from addiffusion_env.backbones.base import Backbone, check_prompts
from addiffusion_env.baselines import make_method
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.episode import Episode
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.envs.loading import load_backbone, load_scorers
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import ConfigError, unknown
from addiffusion_env.prompts.base import Prompt
from addiffusion_env.prompts.emoji_grammar import emoji_prompt
from addiffusion_env.scorers.look import LookScorers

OUTPUT_TYPES = ("pil", "np")


@dataclass(frozen=True)
class PipelineOutput:
    """What a call made.

    Attributes:
        images: N PIL images, or a float32 array (N, H, W, 3) in [0, 1].
        nfe: (N,) evaluations that each picture took.
        actions: the actions taken for each picture: 0 continue, 1 stop, 2 refine.
    """

    images: list[Image.Image] | np.ndarray
    nfe: np.ndarray
    actions: list[list[int]]


class AdaptivePipeline:
    """Text-to-image with a policy that decides after every step whether to go on, stop or refine.

    >>> from addiffusion_env import AdaptivePipeline
    >>> pipe = AdaptivePipeline.from_pretrained("emoji", policy="fixed:4")
    >>> out = pipe(["a photo of a dog", "two red cups"], seeds=[0, 1])
    >>> out.images[0].size, out.nfe.tolist()
    ((64, 64), [4.0, 4.0])

    Args:
        backbone: the model.
        method: a learned policy or a baseline.
        process: the decision process.
        scorers: what looks at previews; ``None`` is the backbone's own.
        max_lanes: how many pictures are made at once.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: Any,
        process: ProcessConfig,
        scorers: LookScorers | None = None,
        max_lanes: int = 16,
    ) -> None:
        self.backbone = backbone
        self.method = method
        self.scorers = scorers or load_scorers(backbone)
        self.max_lanes = max_lanes
        method.bind(backbone, self.scorers)
        self.process = method.process(process)

    @classmethod
    def from_pretrained(
        cls, name_or_dir: str | Path, policy: str | None = None, device: str = "auto"
    ) -> AdaptivePipeline:
        """Loads a policy and its backbone.

        Args:
            name_or_dir: ``"emoji"`` (ships with the package), another backbone's name together with ``policy``, or a
                folder that ``train_sb3.py`` wrote.
            policy: a policy without learning instead: ``"fixed:20"``, ``"stop:6"`` ...
            device: ``auto``, ``cpu``, ``cuda`` ...

        Raises:
            UnknownNameError: when there is no such policy, folder or backbone.
            WeightsError: when its files are missing or damaged.
        """
        folder = _policy_folder(name_or_dir)
        if policy is not None:
            method = make_method(policy)
            known = load_config(folder).environment if folder is not None else {"backbone": str(name_or_dir)}
            # The model of that policy, but the model's own schedule: what a policy learned on is often too short.
            kept = ("backbone", "name_or_path", "backbone_options", "scorers", "dtype")
            own = {key: value for key, value in known.items() if key in kept}
            settings = EnvSettings.of(**own, device=device, refine="off")
        elif folder is not None:
            method = LearnedMethod.from_run(folder)
            settings = replace(method.settings(), device=device)
        else:
            shipped = [path.name for path in PRETRAINED.iterdir() if path.is_dir()] if PRETRAINED.is_dir() else []
            raise unknown("policy", str(name_or_dir), shipped)
        backbone = load_backbone(settings)
        process = settings.process(backbone.capabilities, backbone.name)
        return cls(backbone, method, process, load_scorers(backbone, settings.scorers))

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int] | None = None,
        price: float | None = None,
        target_nfe: float | None = None,
        output_type: str = "pil",
    ) -> PipelineOutput:
        """Makes one picture a prompt.

        Args:
            prompts: N texts.
            seeds: N seeds; all 0 when not given. A picture is a function of its prompt and seed, not of the list.
            price: of one NFE: higher spends less. Only learned policies have one.
            target_nfe: the mean NFE to aim at instead; the policy's measured frontier says at which price.
            output_type: ``"pil"`` or ``"np"``.

        Raises:
            PromptError: for a bare string, an empty list, or a prompt that does not fit the text window.
            ConfigError: for lists of different lengths, price and target together, or a price for a fixed policy.
        """
        texts = check_prompts(prompts)
        if output_type not in OUTPUT_TYPES:
            raise unknown("output_type", output_type, OUTPUT_TYPES)
        numbers = [0] * len(texts) if seeds is None else [int(seed) for seed in seeds]
        if len(numbers) != len(texts):
            raise ConfigError(f"{len(numbers)} seeds for {len(texts)} prompts", "give one seed a prompt")
        method = self._priced(price, target_nfe)
        engine = Engine(self.backbone, self.scorers, solver=self.process.solver, decider=method.decide)
        programs = (
            method.program(self.backbone, self.process, self._prompt(text), seed, keep_strip=False)
            for text, seed in zip(texts, numbers, strict=True)
        )
        return _output(engine.run(programs, max_lanes=min(self.max_lanes, len(texts))), output_type)

    def _prompt(self, text: str) -> Prompt:
        return emoji_prompt(text) if self.backbone.name == "emoji" else Prompt.of(text)

    def _priced(self, price: float | None, target_nfe: float | None) -> Any:
        if price is None and target_nfe is None:
            return self.method
        if price is not None and target_nfe is not None:
            raise ConfigError("both price and target_nfe were given", "give one of them")
        if not isinstance(self.method, LearnedMethod):
            raise ConfigError(f"policy {self.method.name!r} has no price", "leave out price and target_nfe")
        if "price" not in self.method.config.observation:
            raise ConfigError(f"policy {self.method.name!r} was trained at one price", "leave out price and target_nfe")
        chosen = price if price is not None else self.method.config.price_for(float(target_nfe or 0))
        if not np.isfinite(chosen) or chosen < 0:
            raise ConfigError(
                f"price must be 0 or more, got {chosen}", f"up to {self.method.config.highest_price:g} was trained"
            )
        method = replace(self.method, price=float(chosen))
        method.bind(self.backbone, self.scorers)
        return method


def _policy_folder(name_or_dir: str | Path) -> Path | None:
    """Where a policy lies: a shipped one, a policy's folder or a run; ``None`` for the bare name of a backbone."""
    folder = find_policy(name_or_dir)
    if folder is not None or str(name_or_dir) in BACKBONES:
        return folder
    raise unknown("policy or backbone", str(name_or_dir), list(BACKBONES))


def _output(episodes: Sequence[Episode], output_type: str) -> PipelineOutput:
    pixels = np.stack([episode.picture.pixels() for episode in episodes])
    images: list[Image.Image] | np.ndarray
    if output_type == "np":
        images = pixels.astype(np.float32) / 255
    else:
        images = [Image.fromarray(picture) for picture in pixels]
    nfe = np.array([episode.lane.nfe for episode in episodes])
    return PipelineOutput(images, nfe, [list(episode.lane.actions) for episode in episodes])
