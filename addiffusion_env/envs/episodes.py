"""The batched MDP without Gymnasium's API: episodes on n lanes, their prompts, actions, rewards and observations.

The scalar environment wraps a batch of one, the vector environment a batch of n, so they agree by construction. All
randomness is keyed: the j-th episode of a lane with seed s draws its prompt, its image's seed and its cost per NFE from
``(s, j)``, independently of the other lanes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from addiffusion_env.engine.coroutines import env_step, legal_actions
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lane import Begin, Fault, FaultCount, Lane, open_lanes
from addiffusion_env.engine.process import Action
from addiffusion_env.envs.settings import EnvSettings, load_backbone, load_scorers
from addiffusion_env.envs.slot import Columns, Framer, InfoMaker, Slot, draw, info_of, numbers_of, plain_copy
from addiffusion_env.errors import CapabilityError, EpisodeOverError, IllegalActionError, ResumeError
from addiffusion_env.observations import needs_preview
from addiffusion_env.observations.features import Frame, Observer
from addiffusion_env.rewards import Transition, failures, make_reward, reward_error
from addiffusion_env.scorers.image_scores import GeneratedImage, ImageScoresBatch, to_pixels
from addiffusion_env.settings import whole_seed


@dataclass(frozen=True)
class StepResult:
    """The result of one step of ``B`` lanes.

    Attributes:
        observation: key -> (B, dim) float32.
        reward: (B,) float64.
        terminated: (B,) bool, whether the image is finished.
        truncated: (B,) bool, whether the episode was ended from outside: a limit, or a fault.
        infos: the lanes' infos, key by key (:class:`.slot.InfoMaker`).
    """

    observation: dict[str, np.ndarray]
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    infos: Columns


class Episodes:
    """``num_lanes`` concurrent episodes on one model.

    Args:
        settings: the environment's settings.
        num_lanes: number of lanes.
    """

    def __init__(self, settings: EnvSettings, num_lanes: int = 1) -> None:
        self.settings = settings
        self.backbone = load_backbone(settings)
        self._capabilities = self.backbone.capabilities  # which process and spaces were made for
        # Raises for an invalid schedule before the first episode.
        self.process = settings.process(self.backbone.capabilities, self.backbone.name).counted(self.backbone)
        self.scorers = load_scorers(self.backbone, settings.scorers)
        self.engine = Engine(
            self.backbone,
            self.scorers,
            solver=self.process.solver,
            halve=settings.halve_lanes,
            faults=FaultCount(settings.max_faults),
        )
        self.reward = make_reward(settings.reward)
        self.source = settings.prompt_source()
        width = self.backbone.capabilities.feature_dim or 0
        self.observer = Observer(self.scorers.clip_dim, settings.keys(), width)
        # Finished images are always scored, previews only if the observation or the reward reads their scores.
        self.looks = needs_preview(settings.keys()) or self.reward.needs_preview
        self.costs_per_nfe = settings.cost_range()
        self.framer = Framer(self.backbone, self.process, self.scorers, self.costs_per_nfe[1])
        self.infos = InfoMaker.of(self.backbone.capabilities, self.process, self.reward.terms)
        self.slots: list[Slot | None] = [None] * num_lanes

    def begin(
        self, index: int, seed: int | None = None, options: Mapping[str, Any] | None = None, first: int = 0
    ) -> dict[str, Any]:
        """Begins lane ``index``'s next episode and returns its info.

        Args:
            index: which lane.
            seed: a new seed for the lane (its episodes count from ``first`` again); ``None`` keeps the current one.
            options: may contain ``prompt``, ``prompt_id``, ``seed`` (the image's) and ``cost_per_nfe``.
            first: index of the first episode under a new seed.

        Raises:
            EpisodeOverError: if the lane never had a seed.
            PromptError: if the prompt is longer than the text encoder's context.
        """
        return info_of(self.begin_all([index], [seed], [options], [first]), 0)

    def begin_all(
        self,
        indices: Sequence[int],
        seeds: Sequence[int | None] | None = None,
        options: Sequence[Mapping[str, Any] | None] | None = None,
        firsts: Sequence[int] | None = None,
    ) -> Columns:
        """:meth:`begin` of several lanes, whose prompts are encoded together; returns their infos."""
        count = len(indices)
        given = zip(indices, seeds or [None] * count, options or [None] * count, firsts or [0] * count, strict=True)
        draws = []
        for index, seed, chosen, first in given:
            old = self.slots[index]
            if seed is None and old is None:
                raise EpisodeOverError("the first reset of a lane needs a seed", "call reset(seed=0)")
            place = (old.seed, old.episode + 1) if seed is None and old else (whole_seed(seed), first)
            draws.append((*place, chosen or {}))
        slots = self._opened(draws)
        for index, slot in zip(indices, slots, strict=True):
            self.slots[index] = slot
        return self.infos.columns(slots)

    def _opened(self, draws: Sequence[tuple[int, int, Mapping[str, Any]]]) -> list[Slot]:
        """New episodes from (lane's seed, index of the episode, reset options)."""
        self._refresh()
        read = self.backbone.traits.read_prompt
        drawn = [draw(self.source, self.costs_per_nfe, read, *place) for place in draws]
        lanes = open_lanes(self.backbone, [Begin(self.process, prompt, seed) for prompt, seed, _ in drawn])
        return [
            Slot(seed, episode, lane, None, cost_per_nfe)
            for (seed, episode, _), lane, (_, _, cost_per_nfe) in zip(draws, lanes, drawn, strict=True)
        ]

    def _refresh(self) -> None:
        """Takes over changes of the model since the last episode: its device, its components."""
        self.backbone.refresh()
        if (now := self.backbone.capabilities) != self._capabilities:
            pairs = (
                (item.name, getattr(self._capabilities, item.name), getattr(now, item.name)) for item in fields(now)
            )
            changes = ", ".join(f"{name} {then} -> {new}" for name, then, new in pairs if then != new)
            raise CapabilityError(
                f"{self.backbone.name} has changed since this environment was made: {changes}",
                "make the environment again",
            )

    def step(self, actions: Any, reset_ended: bool = False) -> StepResult:
        """Takes one action on every lane.

        Args:
            actions: (B,); see :func:`addiffusion_env.envs.slot.numbers_of`.
            reset_ended: whether a lane that has ended begins its next episode, with reward 0; its action is ignored.

        Raises:
            EpisodeOverError: before the first :meth:`begin`, or if a lane has ended.
            NumericsError, ScorerError: if more lanes have failed than ``max_faults`` allows.
            IllegalActionError: for a value that is not an action, or, in strict mode, a masked action.
        """
        numbers = numbers_of(actions, len(self.slots))
        lanes = range(len(self.slots))
        ended = [index for index in lanes if reset_ended and self.ended(index)]
        running = [index for index in lanes if index not in ended]
        before = [self._live(index) for index in running]
        chosen, refused = self._legal(running, before, [numbers[index] for index in running])
        fresh = self._opened([(slot.seed, slot.episode + 1, {}) for slot in map(self._known, ended)])
        coroutines = [
            env_step(self.backbone, self.process, slot.lane, action, self.looks)
            for slot, action in zip(before, chosen, strict=True)
        ]
        results: list[tuple[Lane, GeneratedImage | None] | Fault] = self.engine.run(coroutines)
        after = [slot.after_step(result) for slot, result in zip(before, results, strict=True)]
        after, reward, terms = self._rewards(running, before, after, chosen)
        action, illegal = [-1] * len(lanes), [False] * len(lanes)
        for row, index in enumerate(running):
            action[index], illegal[index] = chosen[row], refused[row]
        by_lane = {**dict(zip(ended, fresh, strict=True)), **dict(zip(running, after, strict=True))}
        self.slots[:] = slots = [by_lane[index] for index in lanes]
        infos = self.infos.columns(slots, action, illegal, terms)
        terminated = np.array([slot.image is not None for slot in slots])
        truncated = np.array([self._cut(slot) for slot in slots]) & ~terminated
        return StepResult(self.observe(), reward, terminated, truncated, infos)

    def ended(self, index: int) -> bool:
        """Whether the episode of lane ``index`` is over."""
        slot = self.slots[index]
        return slot is not None and (slot.image is not None or self._cut(slot))

    def _cut(self, slot: Slot) -> bool:
        """Whether an episode was truncated: dropped after a fault, or at ``max_decisions``."""
        limit = self.settings.max_decisions
        return slot.fault is not None or (limit is not None and slot.decisions >= limit)

    def _live(self, index: int) -> Slot:
        slot = self.slots[index]
        if slot is None:
            raise EpisodeOverError(f"lane {index} was stepped before reset", "call reset first")
        if self.ended(index):
            raise EpisodeOverError(
                f"lane {index} was stepped after its episode ended",
                "call reset first; in vector environments options={'reset_mask': terminated | truncated} resets some",
            )
        return slot

    def _legal(
        self, indices: Sequence[int], slots: Sequence[Slot], numbers: Sequence[int]
    ) -> tuple[list[int], list[bool]]:
        chosen, refused = [], []
        masks = legal_actions([slot.lane for slot in slots], self.process).tolist()
        for index, slot, value, legal in zip(indices, slots, numbers, masks, strict=True):
            if value not in (0, 1, 2):
                raise IllegalActionError(
                    f"lane {index}: action {value} is none of 0, 1, 2", "0 is continue, 1 stop, 2 refine"
                )
            masked = not legal[value]
            if masked and self.settings.strict:
                raise IllegalActionError(
                    f"lane {index}: {Action(value).name.lower()} is not legal at step {slot.lane.step} with "
                    f"{slot.lane.refinements} refinements done",
                    "choose from action_masks(), or set strict=False to continue instead",
                )
            # A finished image cannot be continued: the fallback is to accept it.
            instead = Action.CONTINUE if legal[Action.CONTINUE] else Action.STOP
            chosen.append(int(instead) if masked else value)
            refused.append(masked)
        return chosen, refused

    # ------------------------------------------------------------------ reward
    def _rewards(
        self, indices: Sequence[int], before: Sequence[Slot], after: Sequence[Slot], actions: Sequence[int]
    ) -> tuple[list[Slot], np.ndarray, dict[str, np.ndarray]]:
        """The slots of the lanes ``indices``, the rewards of all lanes and their terms; 0 for dropped episodes.

        An episode with a NaN or infinite term is dropped here.
        """
        slots, reward = list(after), np.zeros(len(self.slots))
        terms = {name: np.zeros(len(self.slots)) for name in self.reward.terms}
        sound = [row for row, slot in enumerate(slots) if slot.fault is None]
        if not sound:
            return slots, reward, terms
        transition = self._transition(
            [before[row] for row in sound], [slots[row] for row in sound], [actions[row] for row in sound]
        )
        paid, parts = self.reward(transition)
        failed = failures(paid, parts)
        for place, (name, value) in failed.items():
            row = sound[place]
            error = reward_error(name, value, f"lane {indices[row]}", slots[row].lane.prompt.text)
            slots[row] = before[row].after_step(self.engine.faults.drop(error))
        kept = [place for place in range(len(sound)) if place not in failed]
        lanes = [indices[sound[place]] for place in kept]
        reward[lanes] = paid[kept]
        for name, values in parts.items():
            terms[name][lanes] = values[kept]
        return slots, reward, terms

    def _transition(self, before: Sequence[Slot], after: Sequence[Slot], actions: Sequence[int]) -> Transition:
        now = ImageScoresBatch.of([slot.lane.scores for slot in after])
        return Transition.of(
            ImageScoresBatch.of([slot.lane.scores for slot in before]),
            now,
            clip_text=now.clip_text(self.scorers.clip, [slot.lane.prompt for slot in after]),
            nfe=np.array([new.lane.nfe - old.lane.nfe for old, new in zip(before, after, strict=True)]),
            cost_per_nfe=np.array([slot.cost_per_nfe for slot in after]),
            action=np.array(actions),
            terminal=np.array([slot.image is not None for slot in after]),
        )

    # ------------------------------------------------------------------ observation
    def observe(self) -> dict[str, np.ndarray]:
        """The observation of every lane: key -> (B, dim) float32."""
        return self.observer.observe(self.frame())

    def frame(self) -> Frame:
        """The decision state of every lane, as arrays."""
        slots = [self._known(index) for index in range(len(self.slots))]
        return self.framer.frame(*zip(*((slot.lane, slot.before, slot.cost_per_nfe) for slot in slots), strict=True))

    def action_masks(self) -> np.ndarray:
        """(B, 3) bool: legal actions of each lane."""
        return legal_actions([self._known(index).lane for index in range(len(self.slots))], self.process)

    def lane(self, index: int) -> Lane:
        """The current state of lane ``index``.

        Raises:
            EpisodeOverError: before the first :meth:`begin`.
        """
        return self._known(index).lane

    def pixels(self, index: int) -> np.ndarray:
        """(h, w, 3) uint8: the finished image of a lane, else its preview (of the noise before the first step)."""
        slot = self._known(index)
        if slot.image is not None:
            return slot.image.pixels()
        x0 = slot.lane.latents.x if slot.lane.x0 is None else slot.lane.x0
        return to_pixels(self.backbone.preview(x0)[0])

    def _known(self, index: int) -> Slot:
        slot = self.slots[index]
        if slot is None:
            raise EpisodeOverError(f"lane {index} was used before reset", "call reset first")
        return slot

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """All that is needed to resume exactly from here, as plain tensors, numbers and strings."""
        slots = [None if slot is None else slot.state() for slot in self.slots]
        return {"slots": slots, "faults": self.engine.faults.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`; the settings must be the same.

        Raises:
            ResumeError: if the state has a different number of lanes.
        """
        self.check_lanes("state", len(state["slots"]))
        self.slots = [None if entry is None else self._slot(entry) for entry in state["slots"]]
        self.engine.faults.count = state["faults"]

    def check_lanes(self, what: str, lanes: int) -> None:
        """Raises a ResumeError for a saved state of another number of lanes."""
        if lanes != len(self.slots):
            raise ResumeError(
                f"the {what} has {lanes} lanes, this environment {len(self.slots)}",
                f"use num_envs={lanes}",
            )

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: the settings, from which the weights are loaded again, and the state of every lane."""
        return {
            "settings": self.settings,
            "slots": plain_copy([None if slot is None else slot.state() for slot in self.slots]),
            # A state holds plain values only; a prompt's attributes for a user's scorer are kept here.
            "prompts": [None if slot is None else slot.lane.prompt for slot in self.slots],
            "faults": self.engine.faults,
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Constructs the object again; weights already loaded in this process are shared."""
        self.__init__(state["settings"], len(state["slots"]))  # type: ignore[misc]
        self.engine.faults = state["faults"]
        for index, (entry, prompt) in enumerate(zip(state["slots"], state["prompts"], strict=True)):
            if entry is not None:
                slot = self._slot(entry)
                self.slots[index] = replace(slot, lane=replace(slot.lane, prompt=prompt))

    def _slot(self, entry: Mapping[str, Any]) -> Slot:
        # The lane is missing after the loss of a Ray worker, and in older checkpoints once its episode had ended.
        return (
            self._opened([(entry["seed"], entry["episode"], {})])[0]
            if entry["lane"] is None
            else Slot.restored(self.backbone, entry)
        )
