"""COCO-30K: captions of MS-COCO 2014's validation images, one per image, as a fixed, seeded subset."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from addiffusion_env.errors import ConfigError, PromptError
from addiffusion_env.prompts import Prompt, stable_hash, text_id
from addiffusion_lab.benchmarks.base import Benchmark, World
from addiffusion_lab.benchmarks.origin import About, Document, HubOrigin, Origin, PathOrigin, clean

ANNOTATIONS = "captions_val2014.json"
METADATA = "metadata.csv"
CAPTION_COLUMNS = ("text", "caption", "prompt")
NAME_COLUMNS = ("file_name", "filename", "image")
_NUMBER = re.compile(r"(\d+)\.(?:jpg|jpeg|png)$", re.IGNORECASE)


class Caption(NamedTuple):
    """One caption of one image: the image's number or name, the text, and its place in the file."""

    image: str
    text: str
    place: str


class CocoPrompts(Benchmark):
    """COCO-30K's captions, from any of the three formats in use.

    - ``captions_val2014.json``, COCO's own annotations (40,504 images, five captions each): ``count`` images are
      drawn, and one caption of each. The draw uses a hash of seed and numbers, not a random generator: it is the same
      on every machine and version, and a smaller subset is part of a larger one.
    - ``metadata.csv`` (``file_name,text``; BK-SDM's list of 30,000): used as it is; subsets are drawn likewise.
    - the hub's table (``caption``), in its order.

    "COCO-30K" in papers means different lists, and their FIDs are not comparable. So the list's hash is recorded
    (``digest``; also in each evaluation's manifest): compare it before comparing numbers. Some captions are
    identical, so an id also contains the image's number.

    Args:
        path: see :class:`Benchmark`. In a folder with both files, ``metadata.csv`` takes precedence.
        world: see :class:`Benchmark`.
        partial: accept fewer images than ``count``.
        count: number of captions.
        subset_seed: selects the subset.

    Raises:
        ConfigError: for a ``count`` below 1. For other errors see :class:`Benchmark`.
    """

    about: ClassVar[About] = About(
        name="coco",
        title="COCO-30K",
        folder="coco",
        files=(f"{METADATA} or {ANNOTATIONS}",),
        url=(
            "https://netspresso-research-code-release.s3.us-east-2.amazonaws.com/data/mscoco_val2014_30k/metadata.csv "
            "or http://images.cocodataset.org/annotations/annotations_trainval2014.zip"
        ),
        licence="CC BY 4.0",
        counts={"caption": 30_000},
        places=("", "annotations"),
        hub="sayakpaul/coco-30-val-2014",
    )

    def __init__(
        self,
        path: str | Path | None = None,
        world: World = "any",
        partial: bool = False,
        count: int = 30_000,
        subset_seed: int = 0,
    ) -> None:
        if count < 1:
            raise ConfigError(f"count must be at least 1, got {count}", "use 30000")
        self.count, self.subset_seed = count, subset_seed
        super().__init__(path, world, partial)

    def read(self, origin: Origin) -> Iterable[Prompt]:
        """The subset, in the order of the file's images."""
        found = list(_captions(origin, self.subset_seed))
        ranked = sorted(range(len(found)), key=lambda place: stable_hash("coco", self.subset_seed, found[place].image))
        for place in sorted(ranked[: self.count]):
            image, text, where = found[place]
            prompt = clean(text, where)
            yield Prompt(
                prompt,
                text_id(f"{image}\x1f{prompt}", self.about.name),
                task="caption",
                metadata={"index": place, "image": image},
            )

    def counts(self, origin: Origin) -> dict[str, int]:
        """The requested number."""
        del origin
        return {"caption": self.count}


def _captions(origin: Origin, seed: int) -> Iterator[Caption]:
    """One caption per image; every image once."""
    if isinstance(origin, HubOrigin):
        for number, (place, row) in enumerate(origin.rows(("caption",))):
            yield Caption(f"row {number}", row["caption"], place)
        return
    document = _document(origin)
    annotated = document.text.lstrip().startswith("{")
    seen: set[str] = set()
    for caption in _annotated(document, seed) if annotated else _listed(document):
        if caption.image in seen:
            raise PromptError(
                f"{caption.place}: the image {caption.image!r:.80} occurs twice", "list one caption per image"
            )
        seen.add(caption.image)
        yield caption


def _document(origin: PathOrigin) -> Document:
    if not origin.single and origin.find(METADATA) is None:
        if origin.find(ANNOTATIONS) is None:
            raise PromptError(f"no {METADATA} or {ANNOTATIONS} of COCO in {origin}", origin.about.remedy)
        return origin.document(ANNOTATIONS)
    return origin.document(METADATA)


def _annotated(document: Document, seed: int) -> Iterator[Caption]:
    """COCO's annotations: for each image the caption with the lowest hash of its number, ordered by image number."""
    content = document.json()
    annotations = content.get("annotations")
    if not isinstance(annotations, list):
        raise PromptError(f"{document.name}: the list 'annotations' is missing", f"give {ANNOTATIONS} as published")
    images: dict[int, list[tuple[int, Any]]] = defaultdict(list)
    for number, item in enumerate(annotations, start=1):
        numbers = [item.get(key) for key in ("image_id", "id")] if isinstance(item, dict) else []
        if not numbers or any(type(value) is not int for value in numbers) or "caption" not in item:
            raise PromptError(
                f"{document.name}, annotation {number}: expected integers image_id and id and a caption",
                f"give {ANNOTATIONS} as published",
            )
        images[item["image_id"]].append((item["id"], item["caption"]))
    for image, captions in sorted(images.items()):
        key, text = min(captions, key=lambda pair: stable_hash("coco caption", seed, pair[0]))
        yield Caption(str(image), text, f"{document.name}, annotation id {key}")


def _listed(document: Document) -> Iterator[Caption]:
    """A CSV list with a header: captions, and file names of images if present."""
    columns: tuple[int, int | None] | None = None
    for place, row in document.table("take the file as published"):
        if columns is None:
            columns = _columns(row, place)
        else:
            yield _caption(row, columns, place)


def _columns(header: list[str], place: str) -> tuple[int, int | None]:
    names = [name.strip().lower() for name in header]
    text = next((names.index(name) for name in CAPTION_COLUMNS if name in names), None)
    if text is None:
        raise PromptError(
            f"{place}: expected a column {' or '.join(CAPTION_COLUMNS)}, got {', '.join(names)!r:.200}",
            f"give {METADATA} with the header file_name,text",
        )
    return text, next((names.index(name) for name in NAME_COLUMNS if name in names), None)


def _caption(row: list[str], columns: tuple[int, int | None], place: str) -> Caption:
    text, name = columns
    if len(row) <= max(text, name or 0):
        raise PromptError(f"{place}: expected {1 + max(text, name or 0)} fields, got {len(row)}", "quote commas")
    if name is None:
        return Caption(place.rpartition(" ")[2], row[text], place)
    match = _NUMBER.search(row[name])
    # COCO_val2014_000000000164.jpg is image 164 of the annotations.
    return Caption(str(int(match[1][-18:])) if match else row[name], row[text], place)
