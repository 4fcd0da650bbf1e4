"""Exports images in the folder layouts of the official scorers of GenEval and T2I-CompBench.

The export is checked here, since both scorers skip or
misread files with wrong names without an error.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from addiffusion_env.errors import ConfigError, PromptError, RunFolderError, unknown
from addiffusion_env.evaluation.manifest import read_manifest
from addiffusion_env.evaluation.records import uid_of
from addiffusion_env.evaluation.runner import RECORDS_FOLDER
from addiffusion_env.evaluation.store import RecordStore
from addiffusion_env.files import writing_to
from addiffusion_env.prompts import Prompt

Images = Sequence[tuple[Prompt, Sequence[bytes]]]
"""Each prompt with its images as PNG files, one per seed, in the order of the seeds."""

OFFICIAL_FOLDER = "official"
"""Folder of the exports, in the evaluation's folder."""

MAX_NAME_BYTES = 255
"""Maximum length of a file name on common file systems."""

_PNG = b"\x89PNG\r\n\x1a\n"
_OFFICIAL_COPIES = {"geneval": 4, "t2i_compbench": 10}


@dataclass(frozen=True)
class ExportResult:
    """Result of an export.

    Attributes:
        folder: the root, for the official scorer.
        prompts: number of prompts.
        images: number of images.
        command: command of the official scorer, to run in a checkout of its repository.
        notes: differences from the setup of published numbers; may be empty.
    """

    folder: Path
    prompts: int
    images: int
    command: str
    notes: tuple[str, ...]


def export(benchmark: str, images: Iterable[tuple[Prompt, Sequence[bytes]]], folder: Path | str) -> ExportResult:
    """Writes images in a benchmark's official layout. Repeating it overwrites the same files.

    Args:
        benchmark: ``geneval`` or ``t2i_compbench``.
        images: prompts of the benchmark's reader, each with the same number of PNG files.
        folder: the root; created if missing. It may contain an earlier export of the same images, but nothing else,
            since the scorers read all files.

    Raises:
        UnknownNameError: for a benchmark without an official layout.
        ConfigError: for no images, unequal numbers of them, or files that are not PNG.
        PromptError: for a prompt of another source, or one that the layout cannot represent.
        RunFolderError: when the folder holds other files or cannot be written.
    """
    check_export(benchmark)
    given = [(prompt, list(files)) for prompt, files in images]
    copies = _copies(given)
    root = Path(folder)
    planned: dict[Path, bytes] = {}
    for name, data in LAYOUTS[benchmark](given, copies):
        if name in planned:
            raise PromptError(f"two images have the name {name}", "export each prompt of one list once")
        planned[name] = data
    _refuse_strangers(root, planned)
    for name, data in planned.items():
        _write(root / name, data)
    usual = _OFFICIAL_COPIES[benchmark]
    notes = () if copies == usual else (f"{copies} images per prompt, published numbers use {usual}",)
    return ExportResult(root, len(given), len(given) * copies, _COMMANDS[benchmark].format(folder=root), notes)


def geneval_files(given: Images, copies: int) -> Iterator[tuple[Path, bytes]]:
    """``NNNNN/metadata.jsonl``, the original entry, and ``NNNNN/samples/0000.png``; NNNNN is the published index.

    ``metadata.jsonl`` is one JSON object, in ASCII: the scorer opens it with the machine's default encoding.
    """
    del copies
    for prompt, files in given:
        entry = prompt.metadata.get("entry")
        if entry is None:
            raise _stranger(prompt, "geneval")
        folder = Path(f"{_index(prompt, 'geneval'):05d}")
        yield folder / "metadata.jsonl", json.dumps(entry).encode()
        for number, data in enumerate(files):
            yield folder / "samples" / f"{number:04d}.png", data


def t2i_compbench_files(given: Images, copies: int) -> Iterator[tuple[Path, bytes]]:
    """``<category>/samples/{prompt}_{000000}.png``; the number is index x copies + copy, as the scorers count."""
    for prompt, files in given:
        for number, data in enumerate(files):
            name = t2i_compbench_name(prompt.metadata.get("original", prompt.text), _index(prompt), copies, number)
            yield Path(prompt.task) / "samples" / name, data


def t2i_compbench_name(text: str, index: int, copies: int, copy: int) -> str:
    """The file name of one image; the scorers read the prompt back from it.

    Args:
        text: the prompt.
        index: its position in its list, from 0.
        copies: images per prompt.
        copy: index of the image, from 0.

    Raises:
        PromptError: for a prompt that cannot be recovered: one with an underscore (where they split), a path separator
            or a control character, or one that is too long for a file name.

    >>> t2i_compbench_name("a green bench and a blue bowl", 2, 10, 3)
    'a green bench and a blue bowl_000023.png'
    """
    name = f"{text}_{index * copies + copy:06d}.png"
    if bad := next((char for char in text if char in "_/\\" or not char.isprintable()), ""):
        raise PromptError(
            f"prompt {text!r:.80} contains {bad!r}, so T2I-CompBench's scorers cannot recover it from a file name",
            "leave it out of the export",
        )
    if (size := len(name.encode())) > MAX_NAME_BYTES:
        raise PromptError(
            f"prompt {text!r:.80} gives a file name of {size} bytes, the maximum is {MAX_NAME_BYTES}",
            "leave it out of the export",
        )
    return name


Layout = Callable[[Images, int], Iterator[tuple[Path, bytes]]]
LAYOUTS: dict[str, Layout] = {"geneval": geneval_files, "t2i_compbench": t2i_compbench_files}
"""Benchmark -> (path below the root, content) of every file."""

_COMMANDS = {
    "geneval": 'python evaluation/evaluate_images.py "{folder}" --outfile results.jsonl --model-path OBJECT_DETECTOR',
    "t2i_compbench": 'BLIPvqa_eval/BLIP_vqa.py --out_dir="{folder}/CATEGORY" (and the others, by category)',
}


def _copies(given: Images) -> int:
    """Images per prompt, the same for all."""
    numbers = Counter(len(files) for _, files in given)
    if not numbers or 0 in numbers:
        raise ConfigError("there are no images to export", "keep them: keep_images=true")
    if len(numbers) > 1:
        raise ConfigError(
            f"prompts have between {min(numbers)} and {max(numbers)} images, the scorers need equal numbers",
            "finish the run first",
        )
    for prompt, files in given:
        if not all(data.startswith(_PNG) for data in files):
            raise ConfigError(f"an image of {prompt.prompt_id} is not a PNG file", "the scorers skip other formats")
    return next(iter(numbers))


def _index(prompt: Prompt, benchmark: str = "t2i_compbench") -> int:
    index = prompt.metadata.get("index")
    plain = Path(prompt.task).name == prompt.task  # it is used as a folder name
    if not (isinstance(index, int) and index >= 0 and plain and prompt.prompt_id.startswith(f"{benchmark}-")):
        raise _stranger(prompt, benchmark)
    return index


def _stranger(prompt: Prompt, benchmark: str) -> PromptError:
    return PromptError(
        f"prompt {prompt.prompt_id!r:.80} is not from {benchmark}", f"generate the images with benchmark={benchmark}"
    )


def _refuse_strangers(root: Path, planned: dict[Path, bytes]) -> None:
    if not root.exists():
        return
    try:
        found = sorted(path.relative_to(root) for path in root.rglob("*") if not path.is_dir())
    except OSError as error:
        raise RunFolderError(f"cannot read {root}: {error.strerror}", "choose another folder") from error
    if others := [path for path in found if path not in planned]:
        raise RunFolderError(
            f"{root} contains {len(others)} other files, for example {others[0]}: the scorer would count them",
            "choose an empty folder",
        )


def _write(path: Path, data: bytes) -> None:
    """Writes atomically: an interrupted export leaves no partial image for the scorer."""
    part = path.with_name(f".{os.getpid()}.part")  # short: the target's name may have the maximum length
    with writing_to(path, "write"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
            os.replace(part, path)
        finally:
            with contextlib.suppress(OSError):  # already renamed, or never written
                part.unlink()


def check_export(benchmark: str | None) -> None:
    """Checks, before any image is generated, that a benchmark has an official layout.

    Raises:
        UnknownNameError: if it has none.
    """
    if benchmark not in LAYOUTS:
        raise unknown("official layout", str(benchmark), LAYOUTS)


def export_run(out_dir: Path | str, benchmark: str, prompts: Sequence[Prompt]) -> list[ExportResult]:
    """Writes every sampler's images to ``<out_dir>/official/<place>-<sampler>``, seeds in the evaluation's order.

    Args:
        out_dir: folder of a finished evaluation that kept its images.
        benchmark: see :func:`export`, also for further errors.
        prompts: prompts of the evaluation.

    Raises:
        ConfigError: when images are missing.
        RunFolderError: when the evaluation cannot be read, or the export cannot be written.
    """
    folder = Path(out_dir)
    manifest = read_manifest(folder)
    store = RecordStore(folder / RECORDS_FOLDER)
    written = []
    for place, sampler in enumerate(manifest.samplers):
        uids = {
            prompt_id: [uid_of(sampler.variant, key, seed) for seed in manifest.seeds]
            for prompt_id, key in zip(manifest.prompt_ids, manifest.keys, strict=True)
        }
        found = store.images(uid for group in uids.values() for uid in group)
        wanted = sum(map(len, uids.values()))
        if len(found) < wanted:
            raise ConfigError(
                f"{wanted - len(found)} of {wanted} images of {sampler.name} were not kept",
                "choose another out=, or delete the records: they are regenerated, and kept",
            )
        images = [(prompt, [found[uid] for uid in uids[prompt.prompt_id]]) for prompt in prompts]
        # Names of samplers contain colons and paths.
        name = "".join(char if char.isalnum() or char in "-." else "-" for char in sampler.name)[-100:]
        written.append(export(benchmark, images, folder / OFFICIAL_FOLDER / f"{place:02d}-{name}"))
    return written
