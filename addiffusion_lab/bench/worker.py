"""Measures the arms of a checkout on request; :mod:`addiffusion_lab.bench.against` starts it in that folder.

It is this checkout's file also when it measures another one, and uses names that older checkouts have. Each line of the
input is a request, each line of the output its answer, both in JSON: ``{"lanes": 16}`` makes the arms and answers their
names, ``{"arm": 0, "seed": 1}`` runs a round of one of them on new prompts.
"""

import json
import os
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any


def serve(settings: dict[str, Any]) -> None:
    """Answers requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed goes to the errors

    import torch

    import addiffusion_env
    from addiffusion_env.profiling import Clock
    from addiffusion_lab.bench.measure import make_arms, one_round
    from addiffusion_lab.bench.setup import make_setup

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    torch.set_num_threads(settings["threads"])
    setup = make_setup(settings["backbone"], 1, settings["steps"], settings["preview_every"], 1, **settings["load"])
    if settings["instant"]:
        runpy.run_path(settings["instant"])["make_instant"](setup.backbone, setup.scorers)
    clock = Clock(settings["clock"], setup.backbone.device)
    answer(str(Path(addiffusion_env.__file__).resolve().parents[1]))
    arms: list[Any] = []
    for line in sys.stdin:
        asked = json.loads(line)
        if "lanes" in asked:
            setup = replace(setup, lanes=asked["lanes"], images=settings["images"] or 2 * asked["lanes"])
            arms = make_arms(setup, settings["arms"], settings["samplers"])
            answer([arm.name for arm in arms])
            continue
        arm = arms[asked["arm"]]
        if hasattr(arm, "texts"):
            arm.texts = fresh(len(arm.texts), asked["seed"])
        done = one_round(setup, arm, clock)
        answer({"seconds": done.seconds, "lane_steps": done.lane_steps, "peak": done.peak})
    for arm in arms:
        arm.close()


def fresh(count: int, seed: int) -> list[str]:
    """Texts of prompts that differ between rounds, so that each is encoded."""
    from addiffusion_env.prompts.emoji_grammar import EmojiPrompts

    return [prompt.text for prompt in EmojiPrompts(split="test").take(count, seed)]


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
