"""Python and memory of a long stream of prompts, with networks that return at once.

    python benchmarks/stream.py                                        1 to 100,000 different prompts, 64 lanes
    python benchmarks/stream.py --prompts 1000 --lanes 256 --sampler fixed:8

Each line continues the same ``AdaptivePipeline.stream`` of the emoji world: prompts are drawn when a lane is free, and
images are dropped when they are ready, so that memory stays where it is. Encoding a text, previews, scores, decisions,
decoding and the images' formats are included; only the networks are replaced. Seconds are processor time of one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch
from soak import resident

from addiffusion_env import AdaptivePipeline
from addiffusion_env.backbones.emoji import EmojiBackbone
from addiffusion_env.config import friendly
from addiffusion_env.pages import markdown_table
from addiffusion_env.prompts.emoji_grammar import EmojiPrompts
from addiffusion_lab.bench.instant import make_instant


class Prompts:
    """Texts of the emoji grammar, without end; repeats are rare.

    Attributes:
        seconds: processor time of drawing them, which is not the stream's.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def __iter__(self) -> Iterator[str]:
        source, rng = EmojiPrompts("all"), np.random.default_rng(0)
        while True:
            start = time.process_time()
            text = source.sample(rng).text
            self.seconds += time.process_time() - start
            yield text


@friendly
def main() -> None:
    """Draws the images and prints a line for each number of prompts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 100, 1000, 10_000, 100_000], help="increasing")
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--sampler", default="emoji", help="a shipped policy or a sampler")
    options = parser.parse_args()
    torch.set_num_threads(1)
    backbone = EmojiBackbone.from_pretrained()
    pipe = AdaptivePipeline.from_pretrained("emoji", policy=options.sampler, backbone=backbone, max_lanes=options.lanes)
    make_instant(backbone, pipe.scorers)
    prompts = Prompts()
    images = iter(pipe.stream(prompts))
    rows, done, nfe = [], 0, 0.0
    start, drawn = time.process_time(), prompts.seconds
    for wanted in options.prompts:
        while done < wanted:
            nfe += next(images).nfe
            done += 1
        seconds = time.process_time() - start - (prompts.seconds - drawn)
        rows.append((f"{done:,}", f"{1000 * seconds / done:.2f}", f"{1e6 * seconds / nfe:.0f}", f"{resident():.0f}"))
        print(" ".join(rows[-1]), flush=True)
    head = ("prompts", "ms per image", "microseconds per NFE", "resident MiB")
    print(f"\n{options.sampler}, {options.lanes} lanes\n\n{markdown_table(head, rows)}")


if __name__ == "__main__":
    main()
