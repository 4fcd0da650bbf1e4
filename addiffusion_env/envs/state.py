"""State and identity of an environment, common to all environments built on :class:`Episodes`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from addiffusion_env.backbones.fingerprint import digest_of
from addiffusion_env.backbones.identity import described, identity_of
from addiffusion_env.envs.episodes import Episodes
from addiffusion_env.envs.rendering import Cell, View
from addiffusion_env.envs.slot import Slot
from addiffusion_env.errors import ResumeError
from addiffusion_env.prompts import PromptList


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of an environment, for :meth:`Restorable.restore`. Cheap: its tensors are shared, not copied.

    Attributes:
        slots: the state of every lane, immutable.
        filmstrips: cells of the filmstrips, in mode ``filmstrip``.
        over: whether a lane's filmstrip shows an episode that has ended.
    """

    slots: tuple[Slot | None, ...]
    filmstrips: tuple[tuple[Cell, ...], ...]
    over: tuple[bool, ...]


class Restorable:
    """Mixin of the three environments: snapshots, state dicts, identity."""

    episodes: Episodes
    view: View

    def identity(self) -> dict[str, Any]:
        """Identity of the backbone, scorers, process, reward and prompts; see :func:`.identity_of`."""
        episodes = self.episodes
        prompts = episodes.source.prompts if isinstance(episodes.source, PromptList) else episodes.source.name
        return identity_of(
            backbone=episodes.backbone,
            scorers=episodes.scorers,
            process=episodes.process,
            reward=episodes.reward,
            prompts=digest_of(described(prompts)),
        )

    def snapshot(self) -> Snapshot:
        """The current state as a value, for tree search: :meth:`restore` returns to it any number of times.

        The state of wrappers is not included (Gymnasium's ``TimeLimit`` keeps counting): use the setting
        ``max_decisions`` instead.
        """
        filmstrips = tuple(tuple(cells) for cells in self.view.filmstrips)
        return Snapshot(tuple(self.episodes.slots), filmstrips, tuple(self.view.over))

    def restore(self, snapshot: Snapshot) -> None:
        """Restores a snapshot of this environment, or of another one with the same settings.

        The count of dropped episodes (``max_faults``) is not restored.

        Raises:
            ResumeError: if the snapshot has a different number of lanes.
        """
        lanes = len(self.episodes.slots)
        if len(snapshot.slots) != lanes:
            raise ResumeError(
                f"the snapshot has {len(snapshot.slots)} lanes, this environment {lanes}",
                f"use num_envs={len(snapshot.slots)}",
            )
        self.episodes.slots = list(snapshot.slots)
        self.view.filmstrips = [list(cells) for cells in snapshot.filmstrips]
        self.view.over = list(snapshot.over)

    def state_dict(self) -> dict[str, Any]:
        """The same as plain tensors, numbers and strings, for a file: see :meth:`Episodes.state_dict`."""
        return self.episodes.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.episodes.load_state_dict(state)
