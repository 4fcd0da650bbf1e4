"""The command line of the bench; imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from addiffusion_lab.bench import ARMS, CLOCKS


def count(text: str) -> int:
    """Reads a count.

    Raises:
        argparse.ArgumentTypeError: for what is no whole number, or less than 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def new_file(text: str) -> Path:
    """Reads the path of a file to be written: refused now, not after minutes, when its folder is missing.

    Raises:
        argparse.ArgumentTypeError: for a folder, or a file in a folder that is not there.
    """
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be written: it is a folder, or its folder is missing")
    return path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What any bench can be told."""
    parser.add_argument("--lanes", type=count, nargs="+", default=[1, 16], help="for example 1 2 4 8 16 32 64")
    parser.add_argument("--steps", type=count, default=None, help="of the schedule; the backbone's own when not given")
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--look-every", type=count, default=4, help="of arms that do not look after each evaluation")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), metavar="ARM", help=f"of {', '.join(ARMS)}")
    parser.add_argument("--samplers", nargs="*", default=[], metavar="SPEC", help="fixed:50, policy:emoji, best_of:3x4")
    parser.add_argument("--images", type=count, default=None, help="queue of a sampler; two a lane when not given")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu repeats on a machine that others use")
    parser.add_argument("--json", type=new_file, default=None, help="also write the figures here")
