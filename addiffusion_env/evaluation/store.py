"""A folder of record shards: each is written atomically, so a run can be interrupted at any time and resumed."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from addiffusion_env.evaluation.records import SCHEMA, Record, completed, digest_of, from_table, to_table
from addiffusion_env.files import whole_file, writing_to
from addiffusion_env.settings import present

OTHER_OUT = "free space, or choose another out="
"""Remedy when an evaluation's folder cannot be written."""

_SHARD = re.compile(r"records-(\d+)-[0-9a-f]+\.parquet")
_IMAGES = pa.schema([pa.field("uid", pa.string(), nullable=False), pa.field("png", pa.binary(), nullable=False)])


class RecordStore:
    """The records of an evaluation, under ``<folder>/records-NNNNN-*.parquet``.

    Images, when kept, are in shards of the same number. Every stored record has its image.

    Args:
        folder: created if missing.

    Raises:
        RunFolderError: when it cannot be created or written.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)

    def _writing(self) -> AbstractContextManager[None]:
        return writing_to(self.folder, "write records to", OTHER_OUT)

    def write(self, records: Sequence[Record], images: Mapping[str, bytes] | None = None) -> Path:
        """Adds a shard and flushes it to the disk; returns its path.

        Args:
            records: at least one.
            images: uid -> PNG file.

        Raises:
            RunFolderError: when the disk is full or the folder cannot be written; no partial shard remains.
        """
        taken = (int(match[1]) for path in self.folder.iterdir() if (match := _SHARD.match(path.name)))
        number = max(taken, default=-1) + 1
        stem = f"{number:05d}-{digest_of(record.uid for record in records)[:8]}.parquet"
        path = self.folder / f"records-{stem}"
        with self._writing():
            if images:
                rows = [{"uid": uid, "png": png} for uid, png in images.items()]
                # PNG is already compressed.
                write_atomically(
                    pa.Table.from_pylist(rows, _IMAGES), self.folder / f"images-{stem}", compression="none"
                )
            write_atomically(to_table(records), path, compression="zstd")
        return path

    def read(self) -> list[Record]:
        """Every record that can be read, the newest of each uid, by sampler, prompt id and seed.

        A shard that cannot be read is skipped with a warning, so its images are regenerated.
        """
        found: dict[str, Record] = {}
        for path in self.shards():
            table = _read(path, SCHEMA)
            if table is not None:
                found.update((record.uid, record) for record in from_table(table))
        return sorted(found.values(), key=lambda record: (record.sampler, record.prompt_id, record.seed))

    def images(self, uids: Iterable[str]) -> dict[str, bytes]:
        """A mapping uid -> PNG file, for those of ``uids`` whose image was kept."""
        return dict(self.each_image(uids))

    def each_image(self, uids: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """(uid, PNG file) of the images that were kept, shard by shard; one that was made again comes again, newer."""
        wanted = set(uids)
        for path in sorted(self.folder.glob("images-*.parquet")):
            table = _read(path, _IMAGES)
            for row in [] if table is None else table.to_pylist():
                if row["uid"] in wanted:
                    yield row["uid"], row["png"]

    def shards(self) -> list[Path]:
        """The record shards, oldest first."""
        return sorted(path for path in self.folder.iterdir() if _SHARD.fullmatch(path.name))

    def set_aside_damaged(self) -> list[Path]:
        """Renames shards that cannot be read to ``*.damaged``, so that they are reported once; returns new paths."""
        moved = []
        for path in self.shards():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                damaged = _read(path, SCHEMA) is None
            if damaged:
                target = path.with_name(path.name + ".damaged")
                os.replace(path, target)
                warnings.warn(
                    f"record shard {path} is damaged: set aside as {target.name}; its images are regenerated",
                    stacklevel=2,
                )
                moved.append(target)
        return moved


def png_bytes(pixels: np.ndarray) -> bytes:
    """(h, w, 3) uint8 -> a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_atomically(table: pa.Table, path: Path, compression: str) -> None:
    """Writes atomically: under a temporary name, flushed to the disk, then renamed."""
    with whole_file(path) as file:
        pq.write_table(table, file, compression=compression, write_page_checksum=True)


def _read(path: Path, schema: pa.Schema) -> pa.Table | None:
    try:
        table = pq.read_table(path, page_checksum_verification=True, memory_map=False)
        table = table.rename_columns([present("column", name, note=False) for name in table.column_names])
        table = completed(table) if schema is SCHEMA else table
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: a column name that is not text
        warnings.warn(
            f"shard {path} cannot be read ({str(error).splitlines()[0]}): its images are regenerated", stacklevel=3
        )
        return None
    if not table.schema.equals(schema):
        warnings.warn(
            f"shard {path} has other columns than this version writes: its images are regenerated", stacklevel=3
        )
        return None
    return table
