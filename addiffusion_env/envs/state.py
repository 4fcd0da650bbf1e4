"""What every environment over :class:`Episodes` offers beside stepping: its state, and what it is made of."""

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
    """An environment at one moment, for :meth:`Restorable.restore`. Takes no time and shares its tensors.

    Attributes:
        slots: every lane's place, never changed.
        filmstrips: cells of the filmstrips, in mode ``filmstrip``.
        over: whether a lane's filmstrip is of an episode that has ended.
    """

    slots: tuple[Slot | None, ...]
    filmstrips: tuple[tuple[Cell, ...], ...]
    over: tuple[bool, ...]


class Restorable:
    """Mixin of the three environments."""

    episodes: Episodes
    view: View

    def identity(self) -> dict[str, Any]:
        """What makes, scores and pays the images, and which prompts they are of; see :func:`.identity_of`."""
        made = self.episodes
        prompts = made.source.prompts if isinstance(made.source, PromptList) else made.source.name
        return identity_of(
            backbone=made.backbone,
            scorers=made.scorers,
            process=made.process,
            reward=made.reward,
            prompts=digest_of(described(prompts)),
        )

    def snapshot(self) -> Snapshot:
        """The present moment, as a value, for tree search: :meth:`restore` comes back to it any number of times.

        Wrappers keep what is theirs (Gymnasium's ``TimeLimit`` counts on): use the setting ``max_decisions``.
        """
        filmstrips = tuple(tuple(cells) for cells in self.view.filmstrips)
        return Snapshot(tuple(self.episodes.slots), filmstrips, tuple(self.view.over))

    def restore(self, snapshot: Snapshot) -> None:
        """Goes back to a moment of this environment, or of another one with the same settings.

        What was dropped meanwhile stays counted; see ``max_faults``.

        Raises:
            ResumeError: when it has another number of lanes.
        """
        lanes = len(self.episodes.slots)
        if len(snapshot.slots) != lanes:
            raise ResumeError(f"the snapshot has {len(snapshot.slots)} lanes, this environment {lanes}", "use as many")
        self.episodes.slots = list(snapshot.slots)
        self.view.filmstrips = [list(cells) for cells in snapshot.filmstrips]
        self.view.over = list(snapshot.over)

    def state_dict(self) -> dict[str, Any]:
        """The same as plain tensors, numbers and strings, for a file: see :meth:`Episodes.state_dict`."""
        return self.episodes.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.episodes.load_state_dict(state)
