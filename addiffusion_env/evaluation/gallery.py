"""The gallery of an evaluation: one static page with a card for every image, which a reader filters and sorts.

It works from the file system, without a server or a network. The images that the evaluation kept become files in
``gallery/`` beside the page; the others have a card with their figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from addiffusion_env.engine.process import Action
from addiffusion_env.envs.rendering import ACTION_COLOURS
from addiffusion_env.evaluation.collapse import runs_of
from addiffusion_env.evaluation.manifest import Manifest, write_text
from addiffusion_env.evaluation.records import Record
from addiffusion_env.evaluation.samples import thumbnail
from addiffusion_env.evaluation.sections import cut
from addiffusion_env.evaluation.store import OTHER_OUT, RecordStore
from addiffusion_env.files import writing_to
from addiffusion_env.pages import render

PAGE = "gallery.html"
IMAGES_FOLDER = "gallery"
LARGEST = 512
"""Longer side of the largest image files in pixels; larger images are scaled down, smaller ones are as generated."""

ENDINGS = {
    "schedule": "whole schedule",
    "exit": "early exit",
    "schedule_accepted": "whole schedule, image accepted",
    "exit_accepted": "early exit, image accepted",
    "redrawn": "redrawn region or image",
    "none": "no decision",
}
"""How an episode ended -> what the page calls it."""

VERDICTS = {"correct": "correct", "wrong": "wrong", "none": "not judged"}


@dataclass(frozen=True)
class Card:
    """One image of the gallery.

    Attributes:
        record: its record.
        file: its image file, relative to the page; empty where the image was not kept.
        small: whether the image is shown larger than it is.
    """

    record: Record
    file: str
    small: bool

    @property
    def ending(self) -> str:
        """A key of :data:`ENDINGS`."""
        return ending_of(self.record)

    @property
    def verdict(self) -> str:
        """A key of :data:`VERDICTS`."""
        return {True: "correct", False: "wrong", None: "none"}[self.record.correct]

    @property
    def runs(self) -> list[tuple[str, int]]:
        """The actions as (name, number of repetitions)."""
        return runs_of(self.record.actions)

    @property
    def chances(self) -> list[tuple[str, float]]:
        """The policy's probability of each action at the last decision, by name; empty where there is none."""
        return [(Action(n).name.lower(), chance) for n, chance in enumerate(self.record.probabilities or ())]


def ending_of(record: Record) -> str:
    """How an episode ended, as a key of :data:`ENDINGS`; by its last action alone for older records.

    A finished image that may not be drawn again is returned without a decision about it.
    """
    accepted = bool(record.last_checked) and record.actions[-1] == Action.STOP
    before = record.actions[: len(record.actions) - accepted]
    if not before:
        return "none"
    kind = {Action.CONTINUE: "schedule", Action.STOP: "exit", Action.REFINE: "redrawn"}[Action(before[-1])]
    return f"{kind}_accepted" if accepted and kind != "redrawn" else kind


def write_gallery(folder: Path, records: Sequence[Record], manifest: Manifest, store: RecordStore) -> Path:
    """Writes the gallery of an evaluation; returns the page's path.

    Args:
        folder: of the evaluation.
        records: those of the evaluation.
        manifest: orders the cards by prompt, then seed, then sampler, and has the cost of one NFE.
        store: holds the images that were kept.

    Raises:
        RunFolderError: when the page or its images cannot be written.
    """
    files, small = {}, set()
    images = folder / IMAGES_FOLDER
    with writing_to(images, "write", OTHER_OUT):
        images.mkdir(exist_ok=True)
        for uid, png in store.each_image(record.uid for record in records):
            suffix, data = thumbnail(png, LARGEST)
            (images / f"{uid}{suffix}").write_bytes(data)
            files[uid] = f"{IMAGES_FOLDER}/{uid}{suffix}"
            if suffix == ".png":
                small.add(uid)
    prompts = {prompt_id: place for place, prompt_id in enumerate(manifest.prompt_ids)}
    samplers = {entry.name: place for place, entry in enumerate(manifest.samplers)}
    ordered = sorted(records, key=lambda one: (prompts[one.prompt_id], one.seed, samplers[one.sampler]))
    cards = [Card(record, files.get(record.uid, ""), record.uid in small) for record in ordered]
    colours = {action.name.lower(): "rgb({}, {}, {})".format(*ACTION_COLOURS[action]) for action in Action}
    text = render(
        PAGE,
        {"cut": cut},
        title="AdDiffusion gallery",
        cards=cards,
        kept=len(files),
        samplers={name: name for name in samplers},
        verdicts=_found(VERDICTS, (card.verdict for card in cards)),
        endings=_found(ENDINGS, (card.ending for card in cards)),
        judge=manifest.scorers.get("correct", "the rule-based judge").partition(",")[0],
        cost_per_nfe=manifest.cost_per_nfe,
        colours=colours,
    )
    return write_text(folder / PAGE, text)


def _found(words: Mapping[str, str], keys: Iterable[str]) -> dict[str, str]:
    there = set(keys)
    return {key: text for key, text in words.items() if key in there}
