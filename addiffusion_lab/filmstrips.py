"""Filmstrips of a policy on the first test prompts of each kind, with prompts, NFE and verdicts: docs/films.png.

python -m addiffusion_lab.filmstrips docs/films.png [--policy emoji] [--prompts 10]
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from addiffusion_env import AdaptivePipeline
from addiffusion_env.agents.trace import Trace
from addiffusion_env.config import friendly
from addiffusion_env.engine.process import Action
from addiffusion_env.envs.rendering import Cell, draw_filmstrip
from addiffusion_env.evaluation.samples import sample_prompts
from addiffusion_env.prompts.emoji_grammar import EmojiPrompts
from addiffusion_env.scorers.emoji_detector import EmojiDetectorScorer
from addiffusion_env.scorers.image_scores import to_pixels

SIDE, LINE, LETTERS, GAP = 250, 17, 13, 8
"""Width of the words beside a strip, height of a line, font size, and space below a strip, in pixels."""
BETWEEN = 24
"""Pixels between two strips of a row."""
CANDIDATES = 96
PAPER, INK = (255, 255, 255), (32, 33, 36)


def cells_of(trace: Trace, image: np.ndarray) -> list[Cell]:
    """What the policy saw, each with the action that followed; at the end the image, where it was not seen.

    Decisions before an attempt's first evaluation have nothing to show.
    """
    seen = [one for one in trace.decisions if one.preview is not None]
    cells = [Cell(one.preview, one.action, one.preference) for one in seen if one.preview is not None]
    returned = bool(seen) and seen[-1] is trace.decisions[-1] and seen[-1].action == Action.STOP
    return cells if returned else [*cells, Cell(image, Action.STOP, trace.preference)]


def row_of(words: str, cells: Sequence[Cell]) -> Image.Image:
    """One strip with words beside it."""
    strip = Image.fromarray(draw_filmstrip(cells))
    lines = textwrap.wrap(words, SIDE // 7)
    sheet = Image.new("RGB", (SIDE + strip.width, max(strip.height, LINE * len(lines)) + GAP), PAPER)
    sheet.paste(strip, (SIDE, 0))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(LETTERS)
    for place, line in enumerate(lines):
        draw.text((4, 4 + LINE * place), line, fill=INK, font=font)
    return sheet


def stacked(strips: Sequence[Image.Image]) -> Image.Image:
    """The strips below each other, and beside each other where they fit into the width of the widest one."""
    width, rows = max(strip.width for strip in strips), [[strips[0]]]
    for strip in strips[1:]:
        fits = sum(one.width + BETWEEN for one in rows[-1]) + strip.width <= width
        rows = [*rows[:-1], [*rows[-1], strip]] if fits else [*rows, [strip]]
    sheet = Image.new("RGB", (width, sum(max(strip.height for strip in row) for row in rows)), PAPER)
    top = 0
    for row in rows:
        left = 0
        for strip in row:
            sheet.paste(strip, (left, top))
            left += strip.width + BETWEEN
        top += max(strip.height for strip in row)
    return sheet


@friendly
def main(arguments: Sequence[str] | None = None) -> None:
    """Draws the images and writes the picture; the prompts are chosen before any image is drawn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="PNG file to write")
    parser.add_argument("--policy", default="emoji")
    parser.add_argument("--prompts", type=int, default=10)
    options = parser.parse_args(arguments)
    prompts = {prompt.prompt_id: prompt for prompt in EmojiPrompts("test").take(CANDIDATES, seed=0)}
    tasks = {name: prompt.task for name, prompt in prompts.items()}
    chosen = [prompts[name] for name in sample_prompts(tasks, options.prompts)]
    pipe: Any = AdaptivePipeline.from_pretrained(options.policy)
    out = pipe(chosen, seeds=[0] * len(chosen), output_type="pt", return_trace=True)
    verdicts = EmojiDetectorScorer.from_pretrained().verdicts(out.images * 2 - 1, chosen)
    pixels = to_pixels(out.images * 2 - 1)
    strips = []
    for prompt, trace, verdict, image in zip(chosen, out.trace, verdicts, pixels, strict=True):
        judged = "correct" if verdict.correct else f"wrong: {verdict.reason}"
        strips.append(row_of(f"{prompt.text}. {trace.nfe:g} NFE, {judged}", cells_of(trace, image)))
    stacked(strips).quantize(128).save(options.out, optimize=True)
    print(f"{options.out}: {len(strips)} prompts, {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
