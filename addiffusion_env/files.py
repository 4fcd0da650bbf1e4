"""Files that are there whole or not at all, whatever moment a process is killed at."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from addiffusion_env.errors import AdDiffusionError, RunFolderError


def stamp_of(path: Path | str) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of a file, or of all files below a folder: another one when something was written there.

    Empty where there is nothing. For caches within a process; what is kept longer is kept by content.
    """
    place = Path(path).expanduser()
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    found = []
    for file in files:
        with suppress(OSError):
            seen = file.stat()
            if not stat.S_ISDIR(seen.st_mode):
                found.append((str(file), seen.st_size, seen.st_mtime_ns))
    return tuple(found)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write into under another name, flushed to the disk and renamed to ``path`` at the end.

    The name is flushed too: on return the file outlives a power cut.

    An error within leaves what was at ``path`` before, and no part. Several processes and threads may write the same
    path: the last one wins. ``OSError`` is left to the caller, who knows the remedy.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _flush_names(path.parent)
    finally:
        part.unlink(missing_ok=True)


def _flush_names(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders; there the rename itself is journalled
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Within it a disk that is full or a folder that cannot be written is an error that says so in two lines.

    Raises:
        RunFolderError: for any ``OSError`` that is not one of this package's own.
    """
    try:
        yield
    except AdDiffusionError:
        raise
    except OSError as error:
        raise RunFolderError(
            f"cannot write to {folder}: {error.strerror or error}", "free space, or choose another folder"
        ) from error
