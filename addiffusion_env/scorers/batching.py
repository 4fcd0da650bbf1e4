"""What every scorer does around its model: pair the inputs, go in chunks, refuse NaN, remember texts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from addiffusion_env.errors import AdDiffusionError, ConfigError, NumericsError, PromptError, ScorerError
from addiffusion_env.prompts.base import Prompt
from addiffusion_env.scorers.base import Scorer, check_images

CHUNK = 64
"""Pictures a forward pass: enough to fill a GPU with a ViT-L, little enough to fit beside a diffusion model."""


def texts_of(prompts: Sequence[Prompt]) -> list[str]:
    """The texts of ``prompts``; plain strings are taken as prompts too.

    Raises:
        PromptError: for a single string instead of a list, or an entry that is neither.
    """
    if isinstance(prompts, (str, Prompt)):
        raise PromptError(f"prompts must be a sequence, one a picture, got {prompts!r}", "wrap it in a list")
    return [Prompt.of(prompt).text for prompt in prompts]


def check_pairs(images: torch.Tensor, prompts: Sequence[Prompt]) -> list[str]:
    """Checks ``images`` (see :func:`check_images`) and that there is one prompt a picture; returns the texts.

    Raises:
        ImageRangeError: for pictures of the wrong shape, type or range.
        PromptError: when the numbers differ.
    """
    texts = texts_of(prompts)
    if len(texts) != len(check_images(images)):
        raise PromptError(f"{len(images)} pictures but {len(texts)} prompts", "pass one prompt for each picture")
    return texts


def in_chunks(
    function: Callable[..., torch.Tensor], *inputs: Any, size: int = CHUNK, width: tuple[int, ...] = ()
) -> torch.Tensor:
    """Applies ``function`` to slices of ``inputs`` without gradients and joins what comes back on the CPU, in float32.

    Args:
        function: takes one slice of each input, returns (b, width...) of any type on any device.
        *inputs: tensors or sequences of equal length B.
        size: length of a slice.
        width: the shape of one row, used when B is 0.

    Returns:
        (B, width...) float32 on the CPU.
    """
    if size < 1:
        raise ConfigError(f"chunk size must be at least 1, got {size}", f"leave it at {CHUNK}")
    parts = [torch.zeros(0, *width)]
    with torch.no_grad():
        for start in range(0, len(inputs[0]), size):
            rows = function(*(value[start : start + size] for value in inputs))
            parts.append(rows.to(device="cpu", dtype=torch.float32))
    return torch.cat(parts)


def require_finite(values: torch.Tensor, scorer: str, texts: Sequence[str]) -> torch.Tensor:
    """Returns ``values`` (B, ...) when all are finite.

    Raises:
        NumericsError: naming the scorer and the text of the first row that is not.
    """
    finite = torch.isfinite(values)
    wrong = ~(finite.flatten(1).all(1) if values.ndim > 1 else finite)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise NumericsError(
            f"{scorer} gave a value that is not finite for {int(wrong.sum())} of {len(values)} pictures, "
            f"first for {texts[row]!r}",
            "score in float32 (half precision can overflow), and check the pictures",
        )
    return values


@contextmanager
def named(scorer: str) -> Iterator[str]:
    """Within it an error of a scorer's own says whose it is; gives the name back.

    Errors of this package and running out of memory pass as they are.

    Raises:
        ScorerError: for any other error, which is its cause.
    """
    try:
        yield scorer
    except (AdDiffusionError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0][:200]
        raise ScorerError(
            f"{scorer} raised {type(error).__name__}: {first}", "mend the scorer, or take another one"
        ) from error


class ModelScorer(Scorer):
    """A scorer whose model takes a few images and texts at a time.

    Attributes:
        label: which model this is; empty where there is one only.
        chunk: images a forward pass.
    """

    label: str = ""
    chunk: int = CHUNK

    def score(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """See :meth:`.Scorer.score`."""
        texts = check_pairs(images, prompts)
        scores = in_chunks(self._score, images, texts, size=self.chunk)
        return require_finite(scores, f"{self.name} ({self.label})" if self.label else self.name, texts)

    @abstractmethod
    def _score(self, images: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        """(b, 3, H, W) images in [-1, 1] and ``b`` texts -> (b,) scores, without gradients, on any device."""
