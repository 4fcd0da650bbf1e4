"""Fits a calibrator to every place of a table of attempts, finished images and previews; verdicts are not used.

python -m addiffusion_env.tabular.fit_calibrator runs/emoji_full/table calibrators/emoji.safetensors --absolute
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from addiffusion_env.config import friendly
from addiffusion_env.errors import ConfigError, check_settings
from addiffusion_env.scorers.utility import Calibrator, calibrator_of
from addiffusion_env.settings import check_arguments
from addiffusion_env.tabular.table import AttemptTable

SETTINGS = ("directions", "ridge", "rounds", "absolute")
"""Arguments of :meth:`.Calibrator.fit` that may be set."""


def fit_calibrator(table: AttemptTable, finished: Calibrator | None = None, **settings: Any) -> Calibrator:
    """Fits a calibrator to every place of the attempts: finished images, and the previews of each decision step.

    A mixture of the scores says how probably a finished image is correct, at :attr:`.AttemptTable.finished_places`;
    what it says of the end of an attempt is what the previews of the attempt are fitted to.

    Args:
        table: the attempts.
        finished: a calibrator of finished images that is kept, so that only its previews are fitted; ``None`` fits
            both.
        **settings: :data:`SETTINGS`.

    Raises:
        ConfigError: for fewer prompts than directions, or settings of a fit that ``finished`` replaces.
    """
    if finished is not None and settings:
        raise ConfigError(
            f"{', '.join(settings)} would not take effect: the calibrator of finished images is given", "leave out one"
        )
    if finished is None:
        at = table.finished_places
        preference, clip_score = (
            values[:, :, at].reshape(len(table), -1) for values in (table.preference, table.clip_score)
        )
        finished = Calibrator.fit(preference, clip_score, table.clip_text, **settings)
    end, previews = table.finish, slice(table.finish)
    says = finished(table.preference[:, :, end], table.clip_score[:, :, end], table.clip_text)
    preference, clip_score = table.preference[:, :, previews], table.clip_score[:, :, previews]
    return finished.with_previews(table.steps, preference, clip_score, table.clip_text, says)


def check_fit(settings: Mapping[str, Any] | None, prompts: int) -> None:
    """Refuses settings of :func:`fit_calibrator` before hours of recording.

    Raises:
        ConfigError: for an unknown setting, a value of another type, or fewer prompts than directions.
    """
    if settings is None:
        return
    check_settings("tabular.calibrator has", settings, SETTINGS)
    check_arguments("tabular.calibrator", Calibrator.fit, settings)
    directions = settings.get("directions", signature(Calibrator.fit).parameters["directions"].default)
    if prompts <= directions:
        raise ConfigError(
            f"tabular.calibrator has {directions} directions, which needs more prompts than that, and "
            f"tabular.images is {prompts}",
            "record more images, lower tabular.calibrator.directions, or set tabular.calibrator=null",
        )


def read_tables(folder: Path) -> AttemptTable:
    """Loads all tables in a folder and joins them.

    Raises:
        ConfigError: if there is none.
        ResumeError: for a damaged one.
    """
    parts = sorted(folder.glob("*.parquet"))
    if not parts:
        raise ConfigError(f"no table of attempts in {folder}", "give the folder `table` of a training run")
    return AttemptTable.join([AttemptTable.load(part) for part in parts])


@friendly
def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the tables, fits and writes the calibrator, and prints its confidence on the same images."""
    parser = argparse.ArgumentParser(prog="python -m addiffusion_env.tabular.fit_calibrator", description=__doc__)
    parser.add_argument("table", type=Path, help="folder of Parquet files that training recorded")
    parser.add_argument("out", type=Path, help="file to write, .safetensors")
    parser.add_argument("--absolute", action="store_true", help="the scores mean the same for every prompt")
    parser.add_argument("--finished", metavar="CALIBRATOR", help="keep this one, by name or file, and fit its previews")
    chosen = parser.parse_args(arguments)
    table = read_tables(chosen.table)
    kept = None if chosen.finished is None else calibrator_of(chosen.finished)
    calibrator = fit_calibrator(table, kept, **({"absolute": True} if chosen.absolute else {}))
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    calibrator.save(chosen.out)
    odds = calibrator(table.preference, table.clip_score, table.clip_text, table.place_steps)
    print(f"{len(table)} prompts, {table.attempts} attempts each; written: {chosen.out}")
    for place in range(table.finish + 1):
        probability = 1 / (1 + np.exp(-odds[:, :, place]))
        confident = np.mean(abs(probability - 0.5) > 0.45)
        print(
            f"{table.kind(place)}: mean probability of correct {probability.mean():.3f}, above .95 or below .05 for "
            f"{confident:.3f} of the images"
        )


if __name__ == "__main__":
    main()
