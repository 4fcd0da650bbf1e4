"""Lanes as episodes: prompts drawn, actions taken, looks, rewards, observations. Knows nothing of Gymnasium's API.

The scalar environment is a batch of one over this, the vector environment a batch of n; so they agree by
construction. Everything random is keyed: the j-th episode of a lane with seed s draws its prompt, its image's seed
and its cost per NFE from ``(s, j)``, whatever the other lanes do.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from addiffusion_env.backbones.fingerprint import digest_of
from addiffusion_env.engine.coroutines import advance, env_step, finished, legal_actions
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.lane import Fault, FaultCount, GeneratedImage, Lane, Request, open_lane, to_pixels
from addiffusion_env.engine.process import Action
from addiffusion_env.envs.settings import EnvSettings, load_backbone, load_scorers
from addiffusion_env.envs.slot import Framer, InfoMaker, Slot, numbers_of, portable
from addiffusion_env.errors import ConfigError, EpisodeOverError, IllegalActionError, nearest
from addiffusion_env.observations import Frame
from addiffusion_env.observations.features import Observer, needs_preview
from addiffusion_env.old_names import present
from addiffusion_env.prompts import Prompt
from addiffusion_env.rewards import Transition, failures, make_reward, reward_error
from addiffusion_env.scorers.utility import ImageScoresBatch

RESET_OPTIONS = ("prompt", "prompt_id", "seed", "cost_per_nfe")

REFERENCE_CACHE = 100_000
"""Reference scores kept, one number a (prompt, seed)."""


@dataclass(frozen=True)
class StepResult:
    """What one step of ``B`` lanes gave.

    Attributes:
        observation: key -> (B, dim) float32.
        reward: (B,) float64.
        terminated: (B,) bool, the image is finished.
        truncated: (B,) bool, an outside limit ended the episode.
        infos: one dict a lane.
    """

    observation: dict[str, np.ndarray]
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    infos: list[dict[str, Any]]


class Episodes:
    """``num_lanes`` episodes at once on one model.

    Args:
        settings: what was asked for.
        num_lanes: how many.
    """

    def __init__(self, settings: EnvSettings, num_lanes: int = 1) -> None:
        self.settings = settings
        self.backbone = load_backbone(settings)
        self.process = settings.process(self.backbone.capabilities, self.backbone.name)
        # Refuses a bad schedule before anything is drawn.
        self.backbone.sigmas(self.process.steps, self.process.spacing)
        self.scorers = load_scorers(self.backbone, settings.scorers)
        self.engine = Engine(
            self.backbone,
            self.scorers,
            solver=self.process.solver,
            halve=settings.halve_lanes,
            faults=FaultCount(settings.max_faults),
        )
        self.reward = make_reward(settings.reward)
        self._check_reference()
        self.source = settings.prompt_source()
        width = self.backbone.capabilities.feature_dim or 0
        self.observer = Observer(self.scorers.clip_dim, settings.keys(), width)
        # Finished images are always scored; previews only where somebody reads what the scorers say.
        self.looks = needs_preview(settings.keys()) or self.reward.needs_preview
        self.costs_per_nfe = settings.cost_range()
        self.framer = Framer(self.backbone, self.process, self.scorers, self.costs_per_nfe[1])
        self.infos = InfoMaker.of(self.backbone.capabilities, self.process, self.reward.terms)
        self.slots: list[Slot | None] = [None] * num_lanes
        self._references: dict[tuple[str, int], float] = {}
        self._referred_to = ""

    def _check_reference(self) -> None:
        bonus = self.reward.terms.get("terminal_bonus")
        if bonus is not None and bonus.settings.get("relative") and self.settings.reference_steps is None:
            raise ConfigError(
                "terminal_bonus.relative compares with a reference schedule", "set reference_steps, say 20"
            )

    # ------------------------------------------------------------------ beginning
    def begin(
        self, index: int, seed: int | None = None, options: Mapping[str, Any] | None = None, first: int = 0
    ) -> dict[str, Any]:
        """Begins lane ``index``'s next episode and returns its info.

        Args:
            index: which lane.
            seed: a new seed for the lane (its episodes count from ``first`` again); ``None`` goes on.
            options: may name ``prompt``, ``prompt_id``, ``seed`` (the image's) and ``cost_per_nfe``.
            first: which of the seed's episodes begins.

        Raises:
            EpisodeOverError: when the lane never had a seed.
            PromptError: when the prompt does not fit the text window.
        """
        old = self.slots[index]
        if seed is None and old is None:
            raise EpisodeOverError("the first reset of a lane needs a seed", "call reset(seed=0)")
        lane_seed = old.seed if seed is None and old else int(seed or 0)
        episode = old.episode + 1 if seed is None and old else first
        slot = self.slots[index] = self._open(lane_seed, episode, options or {})
        return self.infos.info(slot)

    def _open(self, seed: int, episode: int, options: Mapping[str, Any]) -> Slot:
        prompt, image_seed, cost_per_nfe = self._draw(seed, episode, options)
        return Slot(seed, episode, open_lane(self.backbone, self.process, prompt, image_seed), None, cost_per_nfe)

    def _draw(self, seed: int, episode: int, options: Mapping[str, Any]) -> tuple[Prompt, int, float]:
        options = present("reset option", options)
        for key in options:
            if key not in RESET_OPTIONS:
                raise ConfigError(f"reset has no option {key!r}", nearest(key, RESET_OPTIONS))
        if options.get("prompt_id") is not None and options.get("prompt") is None:
            raise ConfigError("reset was given a prompt_id without a prompt", "give both, or a prompt alone")
        rng = np.random.default_rng([seed, episode])
        prompt = self.source.sample(rng)
        image_seed = int(rng.integers(2**31))
        cost_per_nfe = float(rng.uniform(*self.costs_per_nfe))
        if options.get("prompt") is not None:
            prompt = self._own(options["prompt"], options.get("prompt_id"))
        return prompt, int(options.get("seed", image_seed)), float(options.get("cost_per_nfe", cost_per_nfe))

    def _own(self, prompt: Prompt | str, prompt_id: str | None) -> Prompt:
        """A user's prompt; a text with the id that the backbone's own prompts have, so that its noise is the same."""
        return Prompt.of(self.backbone.traits.read_prompt(prompt) if isinstance(prompt, str) else prompt, prompt_id)

    # ------------------------------------------------------------------ stepping
    def step(self, actions: Any, reset_ended: bool = False) -> StepResult:
        """Takes one action on every lane.

        Args:
            actions: (B,); see :func:`addiffusion_env.envs.slot.numbers_of`.
            reset_ended: a lane that has ended begins its next episode instead, for reward 0; its action is not read.

        Raises:
            EpisodeOverError: before the first :meth:`begin`, or on a lane that has ended.
            NumericsError, ScorerError: when more lanes have failed than ``max_faults`` allows.
            IllegalActionError: for what is no action, or, in strict mode, one that is masked.
        """
        numbers = numbers_of(actions, len(self.slots))
        lanes = range(len(self.slots))
        resting = [index for index in lanes if reset_ended and self.ended(index)]
        going = [index for index in lanes if index not in resting]
        before = [self._live(index) for index in going]
        chosen, refused = self._legal(going, before, [numbers[index] for index in going])
        fresh = [self._open(slot.seed, slot.episode + 1, {}) for slot in map(self._known, resting)]
        turns = [
            env_step(self.backbone, self.process, slot.lane, action, self.looks)
            for slot, action in zip(before, chosen, strict=True)
        ]
        results: list[tuple[Lane, GeneratedImage | None] | Fault] = self.engine.run(turns)
        after = self._compared([slot.moved(result) for slot, result in zip(before, results, strict=True)])
        after, paid, terms = self._rewarded(going, before, after, chosen)
        slots = {**dict(zip(resting, fresh, strict=True)), **dict(zip(going, after, strict=True))}
        self.slots = [slots[index] for index in lanes]
        reward = np.zeros(len(lanes))
        reward[going] = paid
        infos = {index: self.infos.info(slot) for index, slot in zip(resting, fresh, strict=True)}
        for place, index in enumerate(going):
            own = {name: values[place] for name, values in terms.items()}
            infos[index] = self.infos.info(after[place], chosen[place], refused[place], own)
        terminated = np.array([slots[index].image is not None for index in lanes])
        truncated = np.array([self._cut(slots[index]) for index in lanes]) & ~terminated
        return StepResult(self.observe(), reward, terminated, truncated, [infos[index] for index in lanes])

    def ended(self, index: int) -> bool:
        """Whether lane ``index`` has an episode that is over."""
        slot = self.slots[index]
        return slot is not None and (slot.image is not None or self._cut(slot))

    def _cut(self, slot: Slot) -> bool:
        """Whether an episode was ended from outside: dropped, or at its limit of decisions."""
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
        for index, slot, value in zip(indices, slots, numbers, strict=True):
            if value not in (0, 1, 2):
                raise IllegalActionError(f"lane {index}: action {value} is none of 0, 1, 2", "continue, stop, refine")
            legal = legal_actions(slot.lane, self.process)
            masked = not legal[value]
            if masked and self.settings.strict:
                raise IllegalActionError(
                    f"lane {index}: {Action(value).name.lower()} is not legal at step {slot.lane.step} with "
                    f"{slot.lane.refinements} refinements done",
                    "look at action_masks(), or set strict=False to continue instead",
                )
            # A finished image cannot be continued: it is taken.
            instead = Action.CONTINUE if legal[Action.CONTINUE] else Action.STOP
            chosen.append(int(instead) if masked else value)
            refused.append(masked)
        return chosen, refused

    # ------------------------------------------------------------------ reward
    def _rewarded(
        self, indices: Sequence[int], before: Sequence[Slot], after: Sequence[Slot], actions: Sequence[int]
    ) -> tuple[list[Slot], np.ndarray, dict[str, np.ndarray]]:
        """The slots, their reward and its terms; 0 for episodes that were dropped.

        An episode that a term pays NaN or infinity is dropped here.
        """
        slots, reward = list(after), np.zeros(len(after))
        terms = {name: np.zeros(len(after)) for name in self.reward.terms}
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
            slots[row] = before[row].moved(self.engine.faults.drop(error))
        kept = [place for place in range(len(sound)) if place not in failed]
        rows = [sound[place] for place in kept]
        reward[rows] = paid[kept]
        for name, values in parts.items():
            terms[name][rows] = values[kept]
        return slots, reward, terms

    def _transition(self, before: Sequence[Slot], after: Sequence[Slot], actions: Sequence[int]) -> Transition:
        keys = [_key(slot.lane) if slot.image is not None else None for slot in after]
        return Transition.of(
            ImageScoresBatch.of([slot.lane.scores for slot in before]),
            ImageScoresBatch.of([slot.lane.scores for slot in after]),
            clip_text=self.scorers.clip.embed_texts([slot.lane.prompt for slot in after]).numpy(),
            nfe=np.array([new.lane.nfe - old.lane.nfe for old, new in zip(before, after, strict=True)]),
            cost_per_nfe=np.array([slot.cost_per_nfe for slot in after]),
            action=np.array(actions),
            terminal=np.array([slot.image is not None for slot in after]),
            reference=np.array([np.nan if key is None else self._references.get(key, np.nan) for key in keys]),
        )

    def _compared(self, slots: Sequence[Slot]) -> list[Slot]:
        """Makes the reference schedule's images of episodes that have ended, which are not charged for them.

        An episode whose reference fails cannot be paid: it is dropped.
        """
        steps = self.settings.reference_steps
        if steps is None:
            return list(slots)
        ended = {_key(slot.lane): slot.lane for slot in slots if slot.image is not None}
        if ended and (made_by := digest_of(self.backbone.identity)) != self._referred_to:
            self._references, self._referred_to = {}, made_by  # the model was changed meanwhile
        missing = [key for key in ended if key not in self._references]
        process = replace(self.process, steps=steps)
        made = self.engine.run([self._reference_run(process, ended[key]) for key in missing])
        failed: dict[tuple[str, int], Fault] = {}
        for key, image in zip(missing, made, strict=True):
            if isinstance(image, Fault):
                failed[key] = image
                continue
            if len(self._references) >= REFERENCE_CACHE:
                self._references.pop(next(iter(self._references)))
            self._references[key] = float(image.scores.preference[0])
        return [
            replace(slot, image=None, fault=failed[_key(slot.lane)]) if _key(slot.lane) in failed else slot
            for slot in slots
        ]

    def _reference_run(self, process: Any, lane: Lane) -> Generator[Request, Any, GeneratedImage]:
        fresh = open_lane(self.backbone, process, lane.prompt, lane.seed)
        while fresh.remaining:
            fresh = yield from advance(process, fresh)
        return (yield from finished(fresh))

    # ------------------------------------------------------------------ what is seen
    def observe(self) -> dict[str, np.ndarray]:
        """The observation of every lane: key -> (B, dim) float32."""
        return self.observer.observe(self.frame())

    def frame(self) -> Frame:
        """The decision point of every lane, as arrays."""
        slots = [self._known(index) for index in range(len(self.slots))]
        return self.framer.frame(*zip(*((slot.lane, slot.before, slot.cost_per_nfe) for slot in slots), strict=True))

    def action_masks(self) -> np.ndarray:
        """(B, 3) bool: legal actions of each lane."""
        return np.stack([legal_actions(self._known(index).lane, self.process) for index in range(len(self.slots))])

    def lane(self, index: int) -> Lane:
        """Lane ``index`` as it is now.

        Raises:
            EpisodeOverError: before the first :meth:`begin`.
        """
        return self._known(index).lane

    def pixels(self, index: int) -> np.ndarray:
        """(h, w, 3) uint8: the finished image of a lane, else its preview, else its noise through the preview."""
        slot = self._known(index)
        if slot.image is not None:
            return slot.image.pixels()
        x0 = slot.lane.latents.x if slot.lane.x0 is None else slot.lane.x0
        return to_pixels(self.backbone.preview(x0)[0])

    def _known(self, index: int) -> Slot:
        slot = self.slots[index]
        if slot is None:
            raise EpisodeOverError(f"lane {index} was asked before reset", "call reset first")
        return slot

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly from here, as plain tensors, numbers and strings."""
        slots = [None if slot is None else slot.state() for slot in self.slots]
        return {"slots": slots, "faults": self.engine.faults.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict` on the same settings."""
        self.slots = [None if entry is None else self._slot(entry) for entry in state["slots"]]
        self.engine.faults.count = state["faults"]

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: the settings, by which the weights are loaded again, and where every lane is."""
        return {
            "settings": self.settings,
            "slots": portable([None if slot is None else slot.state() for slot in self.slots]),
            # A state has plain values only; what a user's scorer reads of a prompt stays whole here.
            "prompts": [None if slot is None else slot.lane.prompt for slot in self.slots],
            "faults": self.engine.faults,
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Makes it anew; weights that this process has loaded already are shared."""
        self.__init__(state["settings"], len(state["slots"]))  # type: ignore[misc]
        self.engine.faults = state["faults"]
        for index, (entry, prompt) in enumerate(zip(state["slots"], state["prompts"], strict=True)):
            if entry is not None:
                slot = self._slot(entry)
                self.slots[index] = replace(slot, lane=replace(slot.lane, prompt=prompt))

    def _slot(self, entry: Mapping[str, Any]) -> Slot:
        # A lane of a lost Ray worker, and in older checkpoints one that had ended, is known by its episode alone.
        return (
            self._open(entry["seed"], entry["episode"], {})
            if entry["lane"] is None
            else Slot.restored(self.backbone, entry)
        )


def _key(lane: Lane) -> tuple[str, int]:
    return lane.prompt.prompt_id, lane.seed
