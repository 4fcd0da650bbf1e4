"""Files that are there whole or not at all, whatever moment a process is killed at."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write into under another name, flushed to the disk and renamed to ``path`` at the end.

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
    finally:
        part.unlink(missing_ok=True)
