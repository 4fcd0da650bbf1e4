"""What a user would take instead of a policy: images a second and how many are correct, in turn in one run.

    python benchmarks/alternatives.py --prompts 128
    pip install DeepCache==0.1.1 && python benchmarks/alternatives.py     # with DeepCache's rows

Every arm draws the emoji world's images of the same test prompts: diffusers' pipeline with fixed steps (DDIM and UniPC,
one image or a batch at a time, also with DeepCache), best-of-n and resampling by the same scorers, and the shipped
policy and rule at several costs per NFE. Arms take turns in chunks of prompts, the order reversed every time, so that
load on the machine slows all of them; seconds are processor time of one thread, prompts and decoding included.

The last column compares each alternative with the policies at an equal fraction of correct images: the policies'
images a second there, interpolated between their points, divided by the alternative's. A first-block cache does not
apply: diffusers has it for transformers, and the emoji world's denoiser is a UNet.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from addiffusion_env import AdaptivePipeline
from addiffusion_env.backbones.devices import instruction_set
from addiffusion_env.backbones.emoji import EmojiBackbone
from addiffusion_env.config import friendly
from addiffusion_env.evaluation.statistics import share_interval
from addiffusion_env.pages import markdown_table
from addiffusion_env.prompts import Prompt, keyed_noise
from addiffusion_env.prompts.emoji_grammar import EmojiPrompts
from addiffusion_env.scorers.emoji_detector import EmojiDetectorScorer
from addiffusion_lab.bench.arms import pipeline_of

Draw = Callable[[Sequence[Prompt]], torch.Tensor]
"""Draws (B, 3, H, W) images in [-1, 1] of B prompts."""


@dataclass
class Arm:
    """One way of drawing.

    Attributes:
        name: name of its row.
        draw: draws a chunk of prompts.
        ours: whether it is a policy of this package, which the others are compared with.
        share: fraction of the prompts that it draws: slow arms whose images another arm has, too, only time a few.
        seconds: processor time so far.
        correct: the verdict of each image.
    """

    name: str
    draw: Draw
    ours: bool = False
    share: float = 1.0
    seconds: float = 0.0
    correct: list[bool] = field(default_factory=list)

    @property
    def speed(self) -> float:
        """Images per second of processor time."""
        return len(self.correct) / self.seconds

    @property
    def right(self) -> float:
        """Fraction of correct images."""
        return float(np.mean(self.correct))


def diffusers_arm(backbone: EmojiBackbone, steps: int, batch: int, scheduler: str, cache: int = 0) -> Draw:
    """The diffusers pipeline; with ``cache`` above 1, DeepCache evaluates the whole UNet at every ``cache``-th step."""
    import diffusers

    pipe = pipeline_of(backbone)
    pipe.unet = copy.deepcopy(pipe.unet) if cache > 1 else pipe.unet
    config = {**pipe.scheduler.config, "timestep_spacing": "trailing"}
    pipe.scheduler = getattr(diffusers, scheduler).from_config(config)
    if cache > 1:
        from DeepCache import DeepCacheSDHelper

        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=cache, cache_branch_id=0)
        helper.enable()
    can = backbone.capabilities
    height, width = can.image_size

    def draw(prompts: Sequence[Prompt]) -> torch.Tensor:
        parts = []
        for at in range(0, len(prompts), batch):
            part = prompts[at : at + batch]
            noise = torch.stack([keyed_noise(prompt.prompt_id, 0, can.latent_shape) for prompt in part])
            made = pipe(
                [prompt.text for prompt in part],
                num_inference_steps=steps,
                guidance_scale=can.default_guidance,
                height=height,
                width=width,
                latents=noise,
                output_type="pt",
            )
            parts.append(made.images * 2 - 1)
        return torch.cat(parts)

    return draw


def adaptive_arm(backbone: EmojiBackbone, policy: str, lanes: int, cost: float | None = None) -> Draw:
    """``AdaptivePipeline`` with a policy or a sampler."""
    pipe = AdaptivePipeline.from_pretrained(backbone=backbone, name_or_dir="emoji", policy=policy, max_lanes=lanes)
    pipe.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {} if cost is None else {"cost_per_nfe": cost}

    def draw(prompts: Sequence[Prompt]) -> torch.Tensor:
        images = pipe([prompt.text for prompt in prompts], seeds=[0] * len(prompts), output_type="pt", **given).images
        return torch.as_tensor(images) * 2 - 1

    return draw


def arms_of(backbone: EmojiBackbone, lanes: int) -> list[Arm]:
    """The alternatives, then the policies."""
    ddim, unipc = "DDIMScheduler", "UniPCMultistepScheduler"
    found = [Arm("diffusers, 50 DDIM steps, one at a time", diffusers_arm(backbone, 50, 1, ddim), share=0.125)]
    for steps, scheduler in ((50, ddim), (20, unipc), (8, ddim)):
        name = f"diffusers, {steps} {scheduler[:-9].removesuffix('Multistep')} steps, batch {lanes}"
        found.append(Arm(name, diffusers_arm(backbone, steps, lanes, scheduler)))
    if find_spec("DeepCache") is not None:
        for steps, interval in ((50, 3), (20, 2)):
            name = f"diffusers + DeepCache, {steps} DDIM steps, interval {interval}, batch {lanes}"
            found.append(Arm(name, diffusers_arm(backbone, steps, lanes, ddim, interval)))
    found += [Arm(name, adaptive_arm(backbone, name, lanes)) for name in ("best_of:4x8", "threshold_resample:0.36,8,3")]
    costs = (0.004, 0.03, 0.1, 0.3)
    found += [
        Arm(f"policy:emoji at {cost:g} per NFE", adaptive_arm(backbone, "emoji", lanes, cost), True) for cost in costs
    ]
    return [*found, Arm("emoji_rule", adaptive_arm(backbone, "emoji_rule", lanes), True)]


def at_equal_share(arm: Arm, ours: Sequence[Arm]) -> str:
    """How many times as fast the policies are at the arm's fraction of correct images; their fastest point if less."""
    best = [one for one in ours if not any(o.speed > one.speed and o.right >= one.right for o in ours)]
    points = sorted((one.right, 1 / one.speed) for one in best)
    rights, seconds = zip(*points, strict=True)
    if arm.right > rights[-1]:
        return "policies do not reach it"
    return f"{1 / float(np.interp(arm.right, rights, seconds)) / arm.speed:.1f}"


@friendly
def main() -> None:
    """Draws the chunks in turn and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--prompt-seed", type=int, default=2027)
    parser.add_argument("--chunk", type=int, default=32, help="prompts in a turn")
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    prompts = EmojiPrompts("test").take(options.prompts, seed=options.prompt_seed)
    judge, backbone = EmojiDetectorScorer.from_pretrained(), EmojiBackbone.from_pretrained()
    arms = arms_of(backbone, options.lanes)
    warm = EmojiPrompts("train").take(options.lanes, seed=1)
    for arm in arms:
        arm.draw(warm[: 1 if arm.share < 1 else None])
    for number, start in enumerate(range(0, len(prompts), options.chunk)):
        chunk = prompts[start : start + options.chunk]
        for arm in arms if number % 2 else arms[::-1]:
            part = chunk[: max(1, round(arm.share * len(chunk)))]
            began = time.process_time()
            images = arm.draw(part)
            arm.seconds += time.process_time() - began
            arm.correct += [bool(one) for one in judge.score(images.clamp(-1, 1).float(), part)]
        print(f"{start + len(chunk)} of {len(prompts)} prompts", file=sys.stderr, flush=True)
    ours = [arm for arm in arms if arm.ours]
    rows = []
    for arm in arms:
        right = share_interval(np.array(arm.correct, dtype=float))
        shown = f"{right.estimate:.3f} [{right.low:.3f}, {right.high:.3f}]"
        equal = "" if arm.ours or arm.share < 1 else at_equal_share(arm, ours)
        rows.append((arm.name, str(len(arm.correct)), f"{arm.speed:.2f}", shown, equal))
    print(f"{len(prompts)} test prompts, one thread of a CPU with {instruction_set()}, processor time\n")
    print(markdown_table(("arm", "images", "images per CPU second", "correct", "policies at equal share"), rows))
    if options.json is not None:
        kept = [{"arm": arm.name, "seconds": arm.seconds, "correct": arm.correct} for arm in arms]
        options.json.write_text(json.dumps(kept, indent=2))


if __name__ == "__main__":
    main()
