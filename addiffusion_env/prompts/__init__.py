"""Prompts, the noise of their images, and their sources. A new source is one file and one line here.

Noise is keyed: (prompt id, seed) determines named, independent random streams, in any lane, batch, worker and device.
It is always drawn on the CPU from a generator seeded by a hash, and then moved to the device: an image is a function of
its prompt, its seed and the actions taken, not of its position in a batch or of earlier draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from addiffusion_env.errors import PromptError, unknown
from addiffusion_env.registry import Registry

if TYPE_CHECKING:
    import torch

BENCHMARKS = Registry("benchmark", more="addiffusion_lab")
"""Public prompt lists, each also a prompt source; :mod:`addiffusion_lab` registers some."""

PROMPT_SOURCES = Registry(
    "prompt source",
    {
        "emoji": "addiffusion_env.prompts.emoji_grammar:EmojiPrompts",
        "text_file": "addiffusion_env.prompts:TextFilePrompts",
    },
    more="addiffusion_lab",
)


def stable_hash(*parts: object) -> int:
    """A 63-bit hash of ``parts`` that is the same in every process and on every machine (Python's hash is salted)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def text_id(text: str, prefix: str = "text") -> str:
    """A stable id for a prompt without an id.

    >>> text_id("a dog") == text_id("a dog"), text_id("a dog") == text_id("a cat")
    (True, False)
    """
    return f"{prefix}-{stable_hash('prompt', text):016x}"


@dataclass(frozen=True)
class Prompt:
    """A prompt with its metadata.

    Attributes:
        text: input of the text encoder.
        prompt_id: stable identity; noise is keyed by it, records are joined on it.
        task: the kind of prompt, for per-task tables (``"position"``, a PartiPrompts category ...).
        phrases: the parts of ``text`` that each name one object, in order; empty when unknown.
        constraints: number of separate constraints (objects, colours, counts, relations), a measure of complexity.
        requirements: machine-readable form of the prompt for a rule-based judge, or ``None``.
        metadata: other fields of the source's file.
        arguments: additional arguments of the pipeline's call for this prompt (``negative_prompt``, ``image`` ...).
    """

    text: str
    prompt_id: str
    task: str = "prompt"
    phrases: tuple[str, ...] = ()
    constraints: int = 0
    requirements: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, prompt: Prompt | str, prompt_id: str | None = None) -> Prompt:
        """Wraps a plain string; passes a :class:`Prompt` through (with another id, when one is given).

        Raises:
            PromptError: when ``prompt`` is neither, or text that cannot be encoded as UTF-8.
        """
        if isinstance(prompt, str):
            if any("\ud800" <= char <= "\udfff" for char in prompt):
                raise PromptError(f"prompt {prompt[:60]!r} contains an unpaired surrogate", "decode it as UTF-8")
            return cls(prompt, prompt_id or text_id(prompt))
        if not isinstance(prompt, Prompt):
            raise PromptError(f"a prompt must be a string or a Prompt, got {type(prompt).__name__}", "pass its text")
        if prompt_id is None or prompt_id == prompt.prompt_id:
            return prompt
        return replace(prompt, prompt_id=prompt_id)


def keyed_generator(prompt_id: str, seed: int, stream: str = "initial") -> torch.Generator:
    """The CPU generator of one stream of one image.

    Args:
        prompt_id: id of the prompt, for example ``"emoji-4f1c..."``.
        seed: the image's seed.
        stream: name of the stream: ``"initial"``, ``"refine-0"``, ``"refine-1"`` ...
    """
    import torch  # here, so that prompts and registries load without it

    generator = torch.Generator(device="cpu")
    generator.manual_seed(stable_hash("addiffusion", prompt_id, int(seed), stream))
    return generator


def keyed_noise(prompt_id: str, seed: int, shape: Sequence[int], stream: str = "initial") -> torch.Tensor:
    """Standard normal noise of ``shape`` (C, H, W) for one image; float32 on the CPU.

    It is the same on every processor to 1e-6: torch's logarithms and cosines depend on the instruction set in the last
    digit.

    >>> a, b = keyed_noise("p", 0, (4, 2, 2)), keyed_noise("p", 0, (4, 2, 2))
    >>> bool((a == b).all()), bool((a == keyed_noise("p", 1, (4, 2, 2))).any())
    (True, False)
    """
    import torch

    return torch.randn(tuple(shape), generator=keyed_generator(prompt_id, seed, stream), dtype=torch.float32)


@runtime_checkable
class PromptSource(Protocol):
    """Source of the prompts of an environment."""

    name: str

    def sample(self, rng: np.random.Generator) -> Prompt:
        """Draws one prompt; all randomness comes from ``rng``."""

    def take(self, count: int, seed: int = 0) -> list[Prompt]:
        """A fixed list of ``count`` prompts for ``seed``: the same in every process."""


LIST_SPLITS = ("all", "train", "test")
TEST_SHARE = 4
"""One in so many prompts of a list without published splits is in its test split."""


def split_list(prompts: Sequence[Prompt], split: str, name: str) -> list[Prompt]:
    """A split of a list that has none of its own: by a hash of the text, so that equal texts stay together.

    Args:
        prompts: the list.
        split: ``"train"`` (three quarters), ``"test"`` (the rest) or ``"all"``.
        name: of the list, for messages.

    Raises:
        UnknownNameError: for another split.
        PromptError: when no prompt is left.
    """
    if split not in LIST_SPLITS:
        raise unknown("split", split, LIST_SPLITS)
    if split == "all":
        return list(prompts)
    chosen = [p for p in prompts if (stable_hash("split", p.text) % TEST_SHARE == 0) == (split == "test")]
    if not chosen:
        raise PromptError(f"split={split} of {name} holds none of its {len(prompts)} prompts", "use a longer list")
    return chosen


class PromptList:
    """A :class:`PromptSource` over a fixed list, in order.

    Args:
        prompts: the prompts; at least one.
        name: for messages and records.
    """

    def __init__(self, prompts: Sequence[Prompt | str], name: str = "list") -> None:
        if isinstance(prompts, str) or len(prompts) == 0:
            raise PromptError(
                f"prompt list {name!r} needs at least one prompt, got {prompts!r}", "pass a list of prompts"
            )
        self.name = name
        self.prompts = [Prompt.of(prompt) for prompt in prompts]

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def sample(self, rng: np.random.Generator) -> Prompt:
        """Draws one prompt uniformly."""
        return self.prompts[int(rng.integers(len(self.prompts)))]

    def take(self, count: int, seed: int = 0) -> list[Prompt]:
        """The first ``count`` prompts (``seed`` 0) or a seeded subset without replacement, in file order."""
        if count >= len(self.prompts):
            return list(self.prompts)
        if seed == 0:
            return self.prompts[:count]
        chosen = np.random.default_rng(seed).choice(len(self.prompts), count, replace=False)
        return [self.prompts[index] for index in sorted(chosen)]


class TextFilePrompts(PromptList):
    """The prompts of a UTF-8 text file, one per line, in its order.

    Blank lines and lines that begin with ``#`` are skipped; duplicate lines are skipped, since
    records are joined on the prompt.

    Args:
        path: the file.
        split: ``"train"``, ``"test"`` or ``"all"``; see :func:`.split_list`.

    Raises:
        PromptError: when the file is missing, unreadable, not UTF-8, or holds no prompt of the split.
        UnknownNameError: for an unknown split.
    """

    def __init__(self, path: str | Path, split: str = "all") -> None:
        self.path = Path(path)
        prompts = [Prompt.of(line) for line in _read_lines(self.path)]
        super().__init__(split_list(prompts, split, str(self.path)), name=self.path.name)


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # -sig: Windows editors write a byte order mark
    except FileNotFoundError as error:
        raise PromptError(f"no prompt file at {path}", "give the path of a text file, one prompt per line") from error
    except UnicodeDecodeError as error:
        raise PromptError(
            f"prompt file {path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start}",
            "save it as UTF-8",
        ) from error
    except OSError as error:
        raise PromptError(
            f"prompt file {path} cannot be read: {error.strerror}", "give a readable text file"
        ) from error
    lines = (line.strip() for line in text.splitlines())
    prompts = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not prompts:
        raise PromptError(f"prompt file {path} holds no prompt", "write one prompt per line; lines with # are comments")
    return prompts
