"""Base of all benchmarks: published counts, stable ids, stratified subsets, and prompts for the emoji world."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from addiffusion_env.errors import ConfigError, PromptError, unknown
from addiffusion_env.prompts import Prompt, PromptList, split_list, stable_hash, text_id
from addiffusion_env.prompts.emoji_grammar import Scene
from addiffusion_lab.benchmarks.emoji_world import readable_scene, to_emoji
from addiffusion_lab.benchmarks.origin import About, Origin, open_origin

World = Literal["any", "emoji"]
WORLDS: tuple[World, ...] = ("any", "emoji")


class Benchmark(PromptList):
    """A published list of prompts, in its published order.

    A prompt's id is a hash of its task and text, so it is the same in a subset, in another copy of the file and in the
    emoji world. ``metadata["index"]`` is its position in the published list (in its category's file, where there are
    several), from 0.

    Args:
        path: the file or folder; ``"hub"`` or ``"hub:owner/name[@revision]"``; ``None`` for the benchmark's folder
            under ``$ADDIFFUSION_BENCHMARKS`` (without the variable, ``../shared/benchmarks``).
        world: ``"emoji"`` keeps the prompts that the emoji world can draw and judge, in words of its vocabulary.
        partial: accept a number of prompts other than published. Incomplete copies are in circulation, so this is off
            by default.
        split: ``"train"``, ``"test"`` or ``"all"``: a split for training on a list that has no published one; see
            :func:`.split_list`.

    Attributes:
        origin: where it was read from.
        listed: number of prompts of the list, including those that the emoji world cannot draw.
        digest: sha256 of ids and texts in order; equal for equal lists.

    Raises:
        PromptError: when files are missing (with what to download from where) or malformed (with file and line), the
            number of prompts is not the published one, or the emoji world can draw none of the prompts.
        MissingPackageError: for the hub, without the package ``datasets``.
        UnknownNameError: for an unknown world or split.
    """

    about: ClassVar[About]

    def __init__(
        self, path: str | Path | None = None, world: World = "any", partial: bool = False, split: str = "all"
    ) -> None:
        if world not in WORLDS:
            raise unknown("world", world, WORLDS)
        origin = open_origin(path, self.about)
        prompts = list(self.read(origin))
        if not prompts:
            raise PromptError(f"{self.about.title}: {origin} holds no prompt", self.about.remedy)
        if not partial:
            check_counts(prompts, self.counts(origin), self.about, str(origin))
        self.listed = len(prompts)
        prompts = split_list(prompts, split, self.about.title)
        if world == "emoji":
            prompts = [found for prompt in prompts if (found := to_emoji(prompt, self.scene(prompt))) is not None]
            if not prompts:
                raise PromptError(
                    f"{self.about.title}: none of {self.listed} prompts is one that the emoji world knows",
                    "use another backbone, or benchmark=geneval",
                )
        super().__init__(prompts, self.about.name)
        self.origin = str(origin)
        self.digest = list_digest(prompts)

    def read(self, origin: Origin) -> Iterable[Prompt]:
        """The prompts of the original files, in order."""
        raise NotImplementedError

    def counts(self, origin: Origin) -> Mapping[str, int]:
        """Number of prompts of each task in the published version; empty if unknown."""
        del origin
        return self.about.counts

    def scene(self, prompt: Prompt) -> Scene | None:
        """The scene of a prompt in the emoji world, or ``None`` if that world cannot draw it."""
        return readable_scene(prompt.text)

    def take(self, count: int, seed: int = 0) -> list[Prompt]:
        """A subset of ``count`` prompts for ``seed``, stratified by task, in published order.

        The lists are sorted by task, so the first ``count`` prompts would be of one kind. A prompt's rank within its
        task is a hash of seed and id: reproducible, and a task's larger subset contains its smaller one.

        Raises:
            ConfigError: for a negative ``count``.
        """
        if count < 0:
            raise ConfigError(f"count must be at least 0, got {count}", "pass 0 or more")
        if count >= len(self.prompts):
            return list(self.prompts)
        tasks: dict[str, list[int]] = defaultdict(list)
        for place, prompt in enumerate(self.prompts):
            tasks[prompt.task].append(place)
        shares = share_out(count, {task: len(places) for task, places in tasks.items()})
        chosen: list[int] = []
        for task, places in tasks.items():
            ranked = sorted(places, key=lambda place: stable_hash("subset", seed, self.prompts[place].prompt_id))
            chosen += ranked[: shares[task]]
        return [self.prompts[place] for place in sorted(chosen)]

    def record(self) -> dict[str, Any]:
        """The origin of the prompts as recorded by an evaluation: plain values."""
        return {
            "benchmark": self.name,
            "origin": self.origin,
            "listed": self.listed,
            "prompts": len(self.prompts),
            "sha256": self.digest,
        }


class PromptNumbering:
    """Ids for prompts without ids: a hash of task and text; a second occurrence ends in ``-2``.

    Args:
        benchmark: its name, used as prefix of the ids.
    """

    def __init__(self, benchmark: str) -> None:
        self.benchmark = benchmark
        self._seen: Counter[str] = Counter()

    def __call__(self, text: str, task: str = "") -> str:
        """The next prompt's id.

        >>> number = PromptNumbering("parti")
        >>> number("a dog") == number("a dog").removesuffix("-2") != number("a cat")
        True
        """
        key = text_id(f"{task}\x1f{text}" if task else text, self.benchmark)
        self._seen[key] += 1
        return key if self._seen[key] == 1 else f"{key}-{self._seen[key]}"


def check_counts(prompts: Sequence[Prompt], published: Mapping[str, int], about: About, origin: str) -> None:
    """Checks that a list has the published number of prompts.

    Raises:
        PromptError: if not, naming every task whose number of prompts differs.
    """
    if not published:
        return
    found = Counter(prompt.task for prompt in prompts)
    wrong = [
        f"{task!r} has {found[task]}, expected {published.get(task, 0)}"
        for task in dict.fromkeys((*published, *found))
        if found[task] != published.get(task, 0)
    ]
    if wrong:
        total = sum(published.values())
        raise PromptError(
            f"{about.title}: {origin} holds {len(prompts)} prompts, published are {total}: {'; '.join(wrong)}",
            f"take the whole list from {about.url}, or set partial=true (benchmark_options={{partial: true}})",
        )


def share_out(count: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Divides ``count`` among groups in proportion to their sizes, by largest remainders.

    >>> share_out(4, {"a": 5, "b": 4, "c": 1})
    {'a': 2, 'b': 2, 'c': 0}
    """
    total = sum(sizes.values())
    shares = {name: count * size // total for name, size in sizes.items()}
    remainders = sorted(sizes, key=lambda name: (-(count * sizes[name] % total), name))
    for name in remainders[: count - sum(shares.values())]:
        shares[name] += 1
    return shares


def list_digest(prompts: Iterable[Prompt]) -> str:
    """64 hex digits for an ordered list of ids and texts."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(f"{prompt.prompt_id}\t{prompt.text}\n".encode())
    return digest.hexdigest()


def filled_lines(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The (line number, line) pairs of lines that are not blank."""
    return ((number, line) for number, line in lines if line.strip())
