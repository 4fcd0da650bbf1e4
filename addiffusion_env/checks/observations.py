"""Contracts of observation keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from addiffusion_env.checks.base import require
from addiffusion_env.observations import UTILITY
from addiffusion_env.observations.features import Feature, Frame, Widths

LANES, WIDTHS = 4, Widths(clip=8, features=6)
SCORES = {
    "preference": ("preference", "preference_before"),
    "clip": ("clip_image", "clip_score", "clip_before"),
    "dino": ("dino_similarity",),
    UTILITY: ("utility", "best_utility"),
}
"""Part of the preview scores -> its arrays in a frame."""
OF_PREVIEWS = (*SCORES["preference"], *SCORES["clip"], *SCORES["dino"], "utility")
"""Arrays of the preview, for lanes whose image is not finished."""


def it_is_as_long_as_it_says(kind: type[Feature]) -> None:
    """B lanes give (B, width) finite numbers, at least ``low``; its docstring describes them."""
    require(issubclass(kind, Feature), f"{kind.__name__} is no Feature", "derive it from Feature")
    require(bool((kind.__doc__ or "").strip()), "there is no docstring", "describe its numbers")
    require(kind.low < 1, f"its lower bound is {kind.low}", "the upper bound is 1")
    wanted = (LANES, kind().width(WIDTHS))
    found = np.asarray(kind().make(_frame()))
    require(found.shape == wanted, f"its shape is {found.shape}, declared is {wanted}", "return (B, width)")
    require(bool(np.isfinite(found).all()), f"it gives {found}", "give finite numbers")
    least = float(found.min(initial=1.0))
    require(least >= kind.low - 1e-6, f"it gives {least}, below its declared minimum {kind.low}", "declare low")


def lanes_are_seen_alone(kind: type[Feature]) -> None:
    """The observation of a lane does not depend on the other lanes."""
    whole = np.asarray(kind().make(_frame()))
    for lane in range(LANES):
        alone = np.asarray(kind().make(_rows(_frame(), [lane])))[0]
        same = np.allclose(alone, whole[lane], atol=1e-6)
        require(same, f"the observation of lane {lane} differs when it is alone", "compute each lane independently")


def the_frame_is_left_alone(kind: type[Feature]) -> None:
    """The frame's arrays are not changed."""
    given, before = _frame(), _frame()
    kind().make(given)
    for item in fields(Frame):
        same = np.array_equal(getattr(given, item.name), getattr(before, item.name))
        require(same, f"frame.{item.name} was changed", "work on a copy")


def it_declares_which_scores_it_shows(kind: type[Feature]) -> None:
    """Every score that it depends on is declared in ``shows``; without ``needs_preview`` it ignores previews."""
    plain = _frame()
    for part, names in SCORES.items():
        shows = part in kind.shows
        require(shows or not _moved(kind, plain, names), f"it shows {part}", f"add {part!r} to shows")
    unfinished = replace(plain, finished=np.zeros(LANES))
    blind = kind.needs_preview or not _moved(kind, unfinished, OF_PREVIEWS)
    require(blind, "it shows scores of previews", "declare needs_preview = True")
    own = kind.needs_features or not _moved(kind, plain, ("features",))
    require(own, "it shows the denoiser's features", "declare needs_features = True")


OBSERVATION_CONTRACTS = (
    it_is_as_long_as_it_says,
    lanes_are_seen_alone,
    the_frame_is_left_alone,
    it_declares_which_scores_it_shows,
)
"""Subject: a subclass of :class:`.Feature`."""


def _moved(kind: type[Feature], frame: Frame, names: Sequence[str]) -> bool:
    """Whether it depends on some arrays; rows are changed unequally, since a feature may standardise them."""
    arrays = {name: getattr(frame, name) for name in names}
    ramps = {name: np.linspace(0.1, 0.9, array.size).reshape(array.shape) for name, array in arrays.items()}
    other = replace(frame, **{name: array - ramps[name] for name, array in arrays.items()})
    return not np.array_equal(kind().make(frame), kind().make(other))


def _rows(frame: Frame, rows: list[int]) -> Frame:
    return Frame(**{item.name: getattr(frame, item.name)[rows] for item in fields(Frame)})


def _frame() -> Frame:
    """Lanes in progress, the last two with a finished image."""
    rng = np.random.default_rng(0)
    wide = {"clip_image": WIDTHS.clip, "clip_text": WIDTHS.clip, "evidence": 3, "features": WIDTHS.features}
    shapes = {item.name: (LANES, wide[item.name]) if item.name in wide else (LANES,) for item in fields(Frame)}
    made = {name: rng.uniform(0.05, 0.95, shape) for name, shape in shapes.items()}
    for name in ("clip_image", "clip_text"):
        made[name] /= np.linalg.norm(made[name], axis=1, keepdims=True)
    return Frame(**{**made, "has_best": np.ones(LANES), "finished": np.array([0.0, 0.0, 1.0, 1.0])})
