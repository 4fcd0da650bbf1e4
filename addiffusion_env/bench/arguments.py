"""The command line of the bench; imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from addiffusion_env.bench import ARMS, CLOCKS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What any bench can be told."""
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 16], help="for example 1 2 4 8 16 32 64")
    parser.add_argument("--steps", type=int, default=None, help="of the schedule; the backbone's own when not given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--look-every", type=int, default=4, help="of the arms that do not look after each evaluation")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), metavar="ARM", help=f"of {', '.join(ARMS)}")
    parser.add_argument("--methods", nargs="*", default=[], metavar="SPEC", help="fixed:50, policy:emoji, best_of:3x4")
    parser.add_argument("--images", type=int, default=None, help="queue of a method; two a lane when not given")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu repeats on a machine that others use")
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
