"""ImageReward's benchmark prompts (Xu et al. 2023): 100 of DiffusionDB's real users."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from addiffusion_env.errors import PromptError
from addiffusion_env.prompts import Prompt
from addiffusion_lab.benchmarks.base import Benchmark
from addiffusion_lab.benchmarks.origin import About, Origin, clean

FILE = "benchmark-prompts.json"


class ImageRewardPrompts(Benchmark):
    """The prompts of ``benchmark-prompts.json``, a list of ``{"id", "prompt"}``; ids are those of the file.

    See :class:`Benchmark` for arguments and errors.
    """

    about: ClassVar[About] = About(
        name="imagereward",
        title="ImageReward's benchmark",
        folder="imagereward",
        files=(FILE,),
        url="https://github.com/THUDM/ImageReward/tree/main/benchmark",
        licence="Apache-2.0",
        counts={"real_user": 100},
        places=("", "benchmark"),
    )

    def read(self, origin: Origin) -> Iterable[Prompt]:
        """The file's list."""
        document = origin.document(FILE)
        entries = document.json()
        if not isinstance(entries, list):
            raise PromptError(
                f"{document.name}: expected a JSON list, got {type(entries).__name__}", "take the file as published"
            )
        seen: set[str] = set()
        for index, entry in enumerate(entries):
            place = f"{document.name}, prompt {index + 1}"
            if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
                raise PromptError(f"{place}: expected an object with id and prompt", "take the file as published")
            if (own := clean(entry["id"], place)) in seen:
                raise PromptError(f"{place}: the id {own!r:.80} occurs twice", "take the file as published")
            seen.add(own)
            text = clean(entry.get("prompt"), place)
            yield Prompt(
                text, f"imagereward-{own}", task="real_user", metadata={"index": index, "original": entry["prompt"]}
            )
