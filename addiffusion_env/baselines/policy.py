"""A trained policy among the baselines, so that one specification reads them all."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar

from addiffusion_env.errors import ConfigError, unknown
from addiffusion_env.registry import Registry

# By name, so that baselines do not depend on Stable-Baselines3 until a policy is asked for.
_LEARNED = Registry("policy", {"learned": "addiffusion_env.agents.learned:LearnedMethod"})


CONTROLS = ("shuffled", "no_refine")
"""What may be taken from a policy: the text that it reads, or the action *refine*."""


class LearnedPolicy:
    """A trained policy of a run's folder (or a shipped one), at its own price of one NFE or at another.

    ``policy:runs/emoji@0.01,shuffled`` and ``policy:runs/emoji@0.01,no_refine`` are controls: see
    :class:`addiffusion_env.agents.learned.LearnedMethod`.
    """

    usage: ClassVar[str] = "policy:FOLDER[@PRICE][,shuffled][,no_refine]"
    example: ClassVar[tuple[str, str]] = ("emoji", "policy:emoji")

    @staticmethod
    def needs() -> str:
        """Nothing: a policy for the emoji world ships with the package."""
        return ""

    @staticmethod
    def parse(text: str) -> Any:
        """Loads the policy of a run's folder, at a price of its own or the one given.

        It is named after the run's folder and its price, and carries a ``fingerprint`` of the files, so that the
        records of a policy that was trained again under the same name are not taken for the new one's.

        Raises:
            WeightsError: when the folder holds no policy.
            ConfigError: when the price is not a number of at least 0, or a control is there twice.
            UnknownNameError: for another control.
        """
        text, controls = _controls(text)
        folder, at, price = text.rpartition("@")
        if not at:
            folder, price = text, ""
        method = _LEARNED.load("learned").from_run(folder, price=_price(price))
        run = Path(folder).parent if Path(folder).name == "policy" else Path(folder)
        method.name = ",".join((f"policy:{run.name}@{method.price:g}", *controls))
        method.shuffled, method.no_refine = (control in controls for control in CONTROLS)
        return method


def _controls(text: str) -> tuple[str, tuple[str, ...]]:
    """What stands before the controls, and these in the order of :data:`CONTROLS`; folders may hold commas too."""
    head, given = text, []
    while head.rpartition(",")[2] in CONTROLS:
        head, _, control = head.rpartition(",")
        given.append(control)
    after = head.rpartition("@")[2] if "@" in head else ""
    if "," in after:
        raise unknown("control of a policy", after.rpartition(",")[2], CONTROLS)
    if len(set(given)) < len(given):
        raise ConfigError(f"a control of policy:{text} is there twice", "name it once")
    return head, tuple(control for control in CONTROLS if control in given)


def _price(text: str) -> float | None:
    if not text:
        return None
    try:
        price = float(text)
    except ValueError as error:
        raise ConfigError(
            f"the price of a policy must be a number, got {text!r}", "write policy:FOLDER@0.01"
        ) from error
    if not price >= 0:
        raise ConfigError(f"the price of a policy must be at least 0, got {text!r}", "write policy:FOLDER@0.01")
    return price


ABOUT = ("README.md", "results.json")
"""Files that say something about a policy and change nothing that it does."""


def folder_digest(folder: Path) -> str:
    """sha256 over names and contents of a policy folder's files (a run's ``policy`` folder where there is one).

    What only tells of the policy (:data:`ABOUT`) does not count.
    """
    folder = folder / "policy" if (folder / "policy").is_dir() else folder
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file() and path.name not in ABOUT):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
