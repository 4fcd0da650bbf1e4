"""Outputs of pipelines: images in the caller's format, their cost and their traces."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from addiffusion_env.agents.trace import Job, Trace
from addiffusion_env.engine import Counters
from addiffusion_env.engine.episode import Episode
from addiffusion_env.errors import unknown
from addiffusion_env.scorers.image_scores import pixels_of

OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass(frozen=True, eq=False)
class PipelineOutput:
    """Output of a call: ``N`` images, prompt by prompt.

    Attributes:
        images: N PIL images; or float32 in [0, 1], an array (N, H, W, 3) for ``"np"``, a tensor (N, 3, H, W) on the CPU
            for ``"pt"``.
        nfe: (N,) evaluations that each image took.
        actions: the actions taken for each image: 0 continue, 1 stop, 2 refine.
        trace: trace of each image, with ``return_trace``.
        utilisation: busy lanes over lanes, averaged over the denoiser calls, in [0, 1].
    """

    images: list[Image.Image] | np.ndarray | Tensor
    nfe: np.ndarray
    actions: list[list[int]]
    trace: list[Trace] | None
    utilisation: float


@dataclass(frozen=True, eq=False)
class StreamedImage:
    """One image of a stream.

    Attributes:
        index: its position in the order of the prompts (and of the images of each).
        prompt: its text.
        seed: its seed.
        image: a PIL image; or float32 in [0, 1], (H, W, 3) for ``"np"`` and (3, H, W) for ``"pt"``.
        nfe: evaluations that it took.
        actions: the actions taken.
        trace: its trace, with ``return_trace``.
    """

    index: int
    prompt: str
    seed: int
    image: Image.Image | np.ndarray | Tensor
    nfe: float
    actions: list[int]
    trace: Trace | None


Generated = tuple[Job, Episode, Trace | None]
"""Result of the engine's coroutines: the job, its episode, its trace."""


class ImageStream(Iterator[StreamedImage]):
    """Iterator over images as they are finished; also reports how busy the lanes were.

    Args:
        made: finished images, in order of completion.
        counters: of the engine that generates them.
        output_type: one of :data:`OUTPUT_TYPES`.
        ordered: whether images are yielded in the order of the prompts.
    """

    def __init__(
        self, made: Generator[Generated, None, None], counters: Counters, output_type: str, ordered: bool
    ) -> None:
        self._made = made
        self._images = in_order(made) if ordered else made
        self._output_type = output_type
        self.counters = counters

    def __next__(self) -> StreamedImage:
        job, episode, trace = next(self._images)
        [image] = convert([episode], self._output_type)
        lane = episode.lane
        return StreamedImage(job.index, job.prompt.text, job.seed, image, float(lane.nfe), list(lane.actions), trace)

    @property
    def utilisation(self) -> float:
        """Busy lanes over lanes so far, averaged over the denoiser calls, in [0, 1]; 0 before the first.

        While prompts wait every lane is busy (``counters.queued_utilisation``); lanes only become idle at the end,
        since the last images take different numbers of steps.
        """
        return self.counters.utilisation

    def close(self) -> None:
        """Ends the stream and drops images in progress."""
        self._made.close()


def in_order(made: Iterator[Generated]) -> Generator[Generated, None, None]:
    """Images in order of their index; an image that is ready early waits for those before it."""
    waiting: dict[int, Generated] = {}
    following = 0
    for entry in made:
        waiting[entry[0].index] = entry
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def collect(made: Sequence[Generated], output_type: str, utilisation: float) -> PipelineOutput:
    """The output of a whole call, from its images in order."""
    episodes = [episode for _, episode, _ in made]
    traces = [trace for _, _, trace in made if trace is not None]
    return PipelineOutput(
        convert(episodes, output_type),
        np.array([episode.lane.nfe for episode in episodes]),
        [list(episode.lane.actions) for episode in episodes],
        traces if len(traces) == len(made) else None,
        utilisation,
    )


def check_output_type(output_type: str) -> None:
    """Refuses an unknown output type with :class:`.UnknownNameError`, which names the nearest one."""
    if output_type not in OUTPUT_TYPES:
        raise unknown("output_type", str(output_type), OUTPUT_TYPES)


def convert(episodes: Sequence[Episode], output_type: str) -> Any:
    """The images of episodes in one of :data:`OUTPUT_TYPES`; all formats hold the same 8-bit colours."""
    pixels = pixels_of([episode.image for episode in episodes])
    if output_type == "pil":
        return [Image.fromarray(image) for image in pixels]
    scaled = np.divide(pixels, 255, dtype=np.float32)
    return scaled if output_type == "np" else torch.from_numpy(scaled).permute(0, 3, 1, 2).contiguous()
