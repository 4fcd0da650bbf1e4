"""Origin of a benchmark's files: a path, or the hub through ``datasets``; reads texts with their positions."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from addiffusion_env.errors import MissingPackageError, PromptError

ROOT_VARIABLE = "ADDIFFUSION_BENCHMARKS"
DEFAULT_ROOT = "../shared/benchmarks"
"""Default folder of benchmarks; the environment variable ``ADDIFFUSION_BENCHMARKS`` overrides it."""

HUB = "hub"
_REPOSITORY = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*|/[^@]+)(?:@(?P<revision>[\w./-]+))?")
_LINE_BREAKS = re.compile(r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")
_REFUSED = frozenset({"Cc", "Cs"})  # control characters drive terminals; lone surrogates cannot be encoded


@dataclass(frozen=True)
class About:
    """Description of a benchmark and its official source.

    Attributes:
        name: its registry name.
        title: its name in messages.
        folder: its folder under the benchmarks' root.
        files: files to download.
        url: address of the download.
        licence: as its authors state it.
        counts: prompts of each task in the published version; other counts need ``partial=True``.
        places: subfolders of the given path that may contain the files (as in a checkout).
        hub: the repository on the Hugging Face hub, pinned to a revision; ``None`` where none is known.
    """

    name: str
    title: str
    folder: str
    files: tuple[str, ...]
    url: str
    licence: str
    counts: Mapping[str, int]
    places: tuple[str, ...] = ("",)
    hub: str | None = None

    @property
    def remedy(self) -> str:
        """Remedy when the files are missing."""
        wanted = ", ".join(self.files)
        return (
            f"download {wanted} from {self.url} ({self.licence}) and give their folder or file as path "
            f"(benchmark_path= of eval_sb3.py), or set {ROOT_VARIABLE} to the folder that contains {self.folder}/"
        )


@dataclass(frozen=True)
class Document:
    """The text of one file.

    Attributes:
        name: its path or address, for messages.
        text: its content, without a byte order mark.
    """

    name: str
    text: str

    def place(self, line: int) -> str:
        """The place of a line in messages, counted from 1."""
        return f"{self.name}, line {line}"

    def lines(self) -> Iterator[tuple[int, str]]:
        """(line number, line). Only LF and CR LF end lines: other separators may be part of a prompt."""
        for number, line in enumerate(self.text.split("\n"), start=1):
            yield number, line.removesuffix("\r")

    def table(self, remedy: str) -> Iterator[tuple[str, list[str]]]:
        """(place, fields) of the rows of a CSV file: the header, then those that are not blank.

        Raises:
            PromptError: when it is not CSV, with the line and ``remedy``.
        """
        rows = csv.reader(io.StringIO(self.text, newline=""), strict=True)
        try:
            for number, row in enumerate(rows):
                if number == 0 or any(field.strip() for field in row):
                    yield self.place(rows.line_num), row
        except csv.Error as error:
            raise PromptError(f"{self.place(rows.line_num)}: not CSV: {error}", remedy) from error

    def json(self, text: str | None = None, line: int | None = None) -> Any:
        """Parses the whole file, or ``text`` (one of its lines), as JSON.

        Raises:
            PromptError: when it is not JSON, with the line.
        """
        try:
            return json.loads(self.text if text is None else text)
        except (ValueError, RecursionError) as error:
            place = self.place(getattr(error, "lineno", 1) if line is None else line)
            reason = getattr(error, "msg", None) or str(error)
            raise malformed(place, f"not JSON: {reason}") from error


class PathOrigin:
    """A file, or a folder of files, on this machine.

    Args:
        path: the file, or the folder of the benchmark's files.
        about: the benchmark.

    Raises:
        PromptError: when there is nothing at ``path``.
    """

    def __init__(self, path: Path, about: About) -> None:
        self.path = path
        self.about = about
        if not path.exists():
            raise PromptError(f"no {about.title} at {path}", about.remedy)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def single(self) -> bool:
        """Whether the path is a single file, which is read regardless of its name."""
        return self.path.is_file()

    def document(self, name: str) -> Document:
        """The file ``name`` of the folder, or the file at the path itself.

        Raises:
            PromptError: when it is missing, unreadable or not UTF-8.
        """
        if self.single:
            return read_document(self.path)
        found = self.find(name)
        if found is None:
            raise PromptError(f"no {name} of {self.about.title} in {self.path}", self.about.remedy)
        return read_document(found)

    def find(self, name: str) -> Path | None:
        """The path of the file ``name``, or ``None``."""
        candidates = (self.path / place / name for place in self.about.places)
        return next((path for path in candidates if path.is_file()), None)


class HubOrigin:
    """A data set repository on the Hugging Face hub, read through ``datasets``.

    Original files are fetched as text and read here, because the table readers of ``datasets`` strip quotes from
    PartiPrompts. Only benchmarks that exist on the hub only as tables are read as tables.

    Args:
        repository: ``owner/name``, optionally ``@revision``; an absolute folder in the same layout works too.
        about: the benchmark.

    Raises:
        PromptError: for an invalid repository.
        MissingPackageError: without the package ``datasets``.
    """

    single = False

    def __init__(self, repository: str, about: About) -> None:
        match = _REPOSITORY.fullmatch(repository)
        if match is None:
            raise PromptError(
                f"{repository!r} is not a data set repository", "give hub:owner/name or hub:owner/name@revision"
            )
        self.name, self.revision = match["name"], match["revision"]
        self.about = about
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise MissingPackageError(
                f"reading {about.title} from the hub needs the package datasets: {error}",
                "pip install 'addiffusion-env[benchmarks]', or download the files and give their path",
            ) from error
        self._load: Any = load_dataset

    def __str__(self) -> str:
        return f"hub:{self.name}" + (f"@{self.revision}" if self.revision else "")

    def document(self, name: str) -> Document:
        """The repository's file ``name``, unchanged.

        Raises:
            PromptError: when the hub cannot be reached or has no such file.
        """
        revision = f"@{self.revision}" if self.revision else ""
        root = self.name if self.name.startswith("/") else f"hf://datasets/{self.name}{revision}"
        table = self._attempt("text", data_files=f"{root}/{name}", sample_by="document", split="train")
        return Document(f"{self}/{name}", "".join(table["text"]).removeprefix("\ufeff"))

    def rows(self, columns: Sequence[str], config: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """(place, row) of a table with one split; only ``columns`` are read.

        Raises:
            PromptError: when the hub cannot be reached, or the table has another format.
        """
        splits = self._attempt(self.name, config, revision=self.revision)
        if len(splits) != 1:
            raise self._unexpected(f"has the splits {', '.join(splits)}, expected one")
        (table,) = splits.values()
        if missing := [column for column in columns if column not in table.column_names]:
            raise self._unexpected(f"has the columns {', '.join(table.column_names)}, not {', '.join(missing)}")
        for number, row in enumerate(table.select_columns(list(columns)), start=1):
            yield f"{self}, row {number}", row

    def _attempt(self, *arguments: Any, **options: Any) -> Any:
        try:
            return self._load(*arguments, **options)
        except Exception as error:  # any error of the network, the hub or a reader
            reason = (str(error).splitlines() or [""])[0]
            raise self._unexpected(f"cannot be loaded: {type(error).__name__}: {reason}") from error

    def _unexpected(self, what: str) -> PromptError:
        return PromptError(f"{self.about.title}: {self} {what}", self.about.remedy)


Origin = PathOrigin | HubOrigin


def open_origin(path: str | Path | None, about: About) -> Origin:
    """Opens the origin of a benchmark.

    Args:
        path: a file, a folder, ``"hub"``, ``"hub:owner/name[@revision]"``, or ``None`` for the benchmark's folder under
            ``$ADDIFFUSION_BENCHMARKS``.
        about: the benchmark.

    Raises:
        PromptError: when there is nothing, with what to download from where.
        MissingPackageError: for the hub, without the package ``datasets``.
    """
    if path is None:
        return PathOrigin(Path(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT) / about.folder, about)
    scheme, _, repository = str(path).partition(":")
    if scheme != HUB:
        return PathOrigin(Path(path).expanduser(), about)
    repository = repository or about.hub or ""
    if not repository:
        raise PromptError(f"no hub repository of {about.title} is known", about.remedy)
    return HubOrigin(repository, about)


def read_document(path: Path) -> Document:
    """Reads a UTF-8 file.

    Raises:
        PromptError: when it cannot be read or is not UTF-8, with the line.
    """
    try:
        data = path.read_bytes()
        return Document(str(path), data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise PromptError(
            f"{path}, line {line}: not UTF-8: byte {error.object[error.start]:#04x}", "take the file as published"
        ) from error
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror}", "give a readable file") from error


def malformed(place: str, what: str) -> PromptError:
    """The error for a file that differs from the published one."""
    return PromptError(f"{place}: {what}", "take the file as published")


def clean(value: object, place: str) -> str:
    """A prompt's text: line breaks and tabs become one space, the ends are stripped, the rest is unchanged.

    Raises:
        PromptError: when it is not a string, empty, or contains control characters or lone surrogates, with its place.
    """
    if not isinstance(value, str):
        raise malformed(place, f"a prompt must be text, got {type(value).__name__}")
    text = _LINE_BREAKS.sub(" ", value).strip()
    if not text:
        raise malformed(place, "the prompt is empty")
    if not text.isprintable() and (bad := [char for char in text if unicodedata.category(char) in _REFUSED]):
        raise PromptError(f"{place}: the prompt contains the control character U+{ord(bad[0]):04X}", "remove it")
    return text
