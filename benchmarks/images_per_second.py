"""Images a second of the shipped policies, and how many of them are correct, in turn with another checkout.

git clone . /tmp/before && git -C /tmp/before checkout f3e5c9c
python benchmarks/images_per_second.py --against /tmp/before
python benchmarks/images_per_second.py --against . --policies emoji --engines openvino    # the extra openvino

Each checkout runs its own code and its own policy, in a process of its own. They alternate in chunks of prompts, the
order reversed every time, so that load on the machine slows both. Seconds are processor time of the whole call:
prompts, policy, scores and final decode; loading is not counted. All images are judged by this checkout's detector.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from addiffusion_env.config import friendly
from addiffusion_env.evaluation.statistics import t_interval
from addiffusion_env.pages import markdown_table
from addiffusion_env.prompts.emoji_grammar import EmojiPrompts
from addiffusion_env.scorers.emoji_detector import EmojiDetectorScorer
from addiffusion_lab.bench.against import Worker

HERE = Path(__file__).resolve().parents[1]
WORKER = """
import json, os, sys, time
os.environ["OMP_NUM_THREADS"] = "1"
import numpy as np, torch
torch.set_num_threads(1)
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever the code prints
from addiffusion_env import AdaptivePipeline
policy, lanes, (engine, _, dtype) = sys.argv[1], int(sys.argv[2]), sys.argv[3].partition(":")
model = {"device": "cpu"}
if engine != "torch":
    from addiffusion_env.envs.settings import EnvSettings, load_backbone
    options = EnvSettings(device="cpu", dtype=dtype or "float32", backbone_options={"engine": engine})
    model["backbone"] = load_backbone(options)
pipe = AdaptivePipeline.from_pretrained(policy, max_lanes=lanes, **model)
pipe(["a photo of a dog"] * lanes, seeds=list(range(lanes)))
print(json.dumps("ready"), file=answers, flush=True)
for line in sys.stdin:
    prompts, path = json.loads(line)
    start = time.process_time()
    out = pipe(prompts, seeds=[0] * len(prompts), output_type="np")
    seconds = time.process_time() - start
    np.save(path, np.asarray(out.images, dtype=np.float32))
    print(json.dumps([seconds, [float(nfe) for nfe in out.nfe]]), file=answers, flush=True)
"""


class Arm:
    """A policy of a checkout, loaded in a process of its own."""

    def __init__(self, name: str, path: Path, policy: str, lanes: int, engine: str = "torch") -> None:
        self.name = name
        self.seconds: list[float] = []
        self.nfe: list[float] = []
        self.correct: list[bool] = []
        self.worker = Worker(WORKER, path, policy, str(lanes), engine)

    def draw(self, prompts: Sequence[Any], judge: EmojiDetectorScorer, path: Path) -> None:
        """One chunk, drawn there and judged here."""
        seconds, nfe = self.worker.ask([[prompt.text for prompt in prompts], str(path)])
        self.seconds.append(seconds)
        self.nfe += nfe
        images = torch.from_numpy(np.load(path)).permute(0, 3, 1, 2) * 2 - 1
        self.correct += [bool(one) for one in judge.score(images, prompts)]

    def row(self, first: Arm) -> tuple[str, ...]:
        """A row of the table, compared with the first arm."""
        images = len(self.correct)
        speed = t_interval(np.log(np.divide(first.seconds, self.seconds)), 0.95)
        better = t_interval(np.subtract(self.correct, first.correct, dtype=float), 0.95)
        compared = (
            f"{np.exp(speed.estimate):.2f} [{np.exp(speed.low):.2f}, {np.exp(speed.high):.2f}]",
            better.signed,
        )
        return (
            self.name,
            f"{images / sum(self.seconds):.2f}",
            f"{np.mean(self.nfe):.2f}",
            f"{np.mean(self.correct):.3f}",
            *(compared if self is not first else ("", "")),
        )


@friendly
def main() -> None:
    """Draws the chunks in turn and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--against", type=lambda text: Path(text).resolve(), required=True, help="another checkout, the first row"
    )
    parser.add_argument("--policies", nargs="+", default=["emoji", "emoji_rule"], help="of this checkout")
    parser.add_argument(
        "--engines", nargs="+", default=["torch"], help="of this checkout: torch, openvino, openvino:bfloat16"
    )
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--prompt-seed", type=int, default=2027)
    parser.add_argument("--chunk", type=int, default=64, help="prompts in a turn")
    parser.add_argument("--lanes", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    judge, prompts = (
        EmojiDetectorScorer.from_pretrained(),
        EmojiPrompts("test").take(options.prompts, seed=options.prompt_seed),
    )
    arms = [Arm(f"{options.against.name}: emoji", options.against, "emoji", options.lanes)]
    arms += [
        Arm(policy if engine == "torch" else f"{policy}, {engine}", HERE, policy, options.lanes, engine)
        for policy in options.policies
        for engine in options.engines
    ]
    with tempfile.TemporaryDirectory() as folder:
        for number, start in enumerate(range(0, len(prompts), options.chunk)):
            for arm in arms if number % 2 else arms[::-1]:
                arm.draw(prompts[start : start + options.chunk], judge, Path(folder, "images.npy"))
            print(f"{start + options.chunk} of {len(prompts)} prompts", file=sys.stderr, flush=True)
    head = ("policy", "images per CPU second", "NFE", "correct", "times as fast", "correct, difference")
    print(markdown_table(head, [arm.row(arms[0]) for arm in arms]))


if __name__ == "__main__":
    main()
