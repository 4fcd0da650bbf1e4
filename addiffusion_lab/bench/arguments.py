"""The command line of the benchmark; imports no large libraries."""

from __future__ import annotations

import argparse
from pathlib import Path

from addiffusion_lab.bench import ARMS, CLOCKS


def count(text: str) -> int:
    """Parses a count.

    Raises:
        argparse.ArgumentTypeError: for anything but an integer of at least 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def new_file(text: str) -> Path:
    """Parses the path of an output file; checked now rather than after the measurement.

    Raises:
        argparse.ArgumentTypeError: for a folder, or a file in a folder that does not exist.
    """
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be written: it is a folder, or its folder is missing")
    return path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that all benchmarks share."""
    parser.add_argument("--lanes", type=count, nargs="+", default=[1, 16], help="for example 1 2 4 8 16 32 64")
    parser.add_argument("--steps", type=count, default=None, help="steps of the schedule; default: the backbone's")
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument(
        "--preview-every",
        "--look-every",
        type=count,
        default=4,
        help="evaluations between previews, for arms that do not preview each one",
    )
    parser.add_argument("--arms", nargs="*", default=list(ARMS), metavar="ARM", help=f"of {', '.join(ARMS)}")
    parser.add_argument(
        "--samplers",
        "--methods",
        nargs="*",
        default=None,
        metavar="SPEC",
        help="fixed:50, policy:emoji, best_of:3x4 ...; default: the backbone's shipped policy; none where left empty",
    )
    parser.add_argument("--images", type=count, default=None, help="images in a sampler's queue; default: two per lane")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu time is reproducible on a shared machine")
    parser.add_argument("--json", type=new_file, default=None, help="also write the figures here")
