"""One lane of an environment: its actions, how its episodes begin, its state, and the infos and frames made of it.

Infos have constant keys, shapes and types, since replay buffers allocate their arrays from the first info they see.
Real numbers are np.float64, which is a Python float and readable by TorchRL. They are made key by key for all lanes,
since a dict per lane takes more time than the rest of a step.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from addiffusion_env.backbones.base import Backbone, Capabilities
from addiffusion_env.backbones.batches import evolved
from addiffusion_env.engine.lane import Fault, Lane, restore_lane
from addiffusion_env.engine.process import Action, ProcessConfig
from addiffusion_env.errors import AdDiffusionError, ConfigError, IllegalActionError, nearest
from addiffusion_env.observations.features import LOG_SNR_RANGE, Frame
from addiffusion_env.prompts import Prompt, PromptSource
from addiffusion_env.scorers.image_scores import GeneratedImage, ImageScorers, ImageScores, ImageScoresBatch, pixels_of
from addiffusion_env.settings import present


class ActionSpace(spaces.Discrete):
    """``Discrete(3)``; ``sample(mask=)`` also accepts the bool masks of :meth:`AdDiffusionEnv.action_masks`.

    >>> import numpy as np
    >>> space = ActionSpace()
    >>> space == spaces.Discrete(3), int(space.sample(mask=np.array([False, False, True])))
    (True, 2)
    """

    def __init__(self, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(len(Action), seed=seed)

    def sample(self, mask: Any = None, probability: Any = None) -> np.int64:
        """Draws an action.

        Args:
            mask: (3,) bool or int8, the actions that may be drawn.
            probability: (3,) float64, summing to 1.
        """
        return super().sample(None if mask is None else _int8(mask), probability)


class BatchedActionSpace(spaces.MultiDiscrete):
    """The action space of ``num_envs`` lanes; ``sample(mask=)`` also accepts one (num_envs, 3) array of masks.

    Args:
        num_envs: number of lanes.
    """

    def __init__(self, num_envs: int, seed: int | np.random.Generator | None = None) -> None:
        super().__init__([len(Action)] * num_envs, seed=seed)

    def sample(self, mask: Any = None, probability: Any = None) -> np.ndarray:
        """Draws (num_envs,) actions.

        Args:
            mask: the actions that may be drawn in each lane, bool or int8: (num_envs, 3), or Gymnasium's tuple.
            probability: a tuple with the probabilities of each lane.
        """
        return super().sample(None if mask is None else tuple(_int8(row) for row in mask), probability)


@batch_space.register(ActionSpace)
def _batched(space: ActionSpace, n: int = 1) -> BatchedActionSpace:
    """Makes SyncVectorEnv's action space accept masks in one array, too."""
    return BatchedActionSpace(n, seed=deepcopy(space.np_random))


def _int8(mask: Any) -> np.ndarray:
    """The mask in Gymnasium's dtype."""
    array = np.asarray(mask)
    return array.astype(np.int8) if array.dtype == bool else array


def numbers_of(actions: Any, lanes: int) -> list[int]:
    """One number per lane, from a number, a list, or an array or tensor of shape (lanes,) or (lanes, 1).

    Raises:
        IllegalActionError: for another length or shape, or values that are not whole numbers.
    """
    if isinstance(actions, torch.Tensor):
        actions = actions.detach().cpu()
    elif isinstance(actions, Sequence) and any(isinstance(action, torch.Tensor) for action in actions):
        actions = [int(action) for action in actions]
    try:
        given = np.asarray(actions)
    except ValueError:  # rows of different lengths
        given = np.asarray(actions, dtype=object)
    if given.shape not in ((lanes,), (lanes, 1)) and not (lanes == 1 and given.shape == ()):
        counted = f"{given.shape[0]} actions" if given.ndim == 1 else f"actions of shape {given.shape}"
        raise IllegalActionError(f"got {counted} for {lanes} lanes", f"send an array of shape ({lanes},)")
    whole = given.dtype.kind in "biu" or (
        given.dtype.kind == "f" and bool((np.isfinite(given) & (given == np.trunc(given))).all())
    )
    if not whole:
        raise IllegalActionError(
            f"actions must be whole numbers, got {actions!r:.60}", "0 is continue, 1 stop, 2 refine"
        )
    return [int(action) for action in given.reshape(-1).tolist()]


RESET_OPTIONS = ("prompt", "prompt_id", "seed", "cost_per_nfe")


def draw(
    source: PromptSource,
    costs_per_nfe: tuple[float, float],
    read: Callable[[str], Prompt],
    seed: int,
    episode: int,
    options: Mapping[str, Any],
) -> tuple[Prompt, int, float]:
    """The prompt, image seed and cost per NFE of an episode, from the lane's seed and the reset's options.

    Args:
        source: prompts of episodes without one of their own.
        costs_per_nfe: the range that costs per NFE are drawn from.
        read: reads a user's text; it gets the id that it has in the backbone's prompt set, so that its noise is the
            same.
        seed: of the lane.
        episode: index of the episode under that seed.
        options: see :data:`RESET_OPTIONS`; ``None`` is as if it were left out.

    Raises:
        ConfigError: for an unknown option, a value of another type or below 0, or a ``prompt_id`` without a ``prompt``.
    """
    options = present("reset option", options)
    for key in options:
        if key not in RESET_OPTIONS:
            raise ConfigError(f"reset has no option {key!r}", nearest(key, RESET_OPTIONS))
    options = {key: value for key, value in options.items() if value is not None}
    prompt, prompt_id = options.get("prompt"), options.get("prompt_id")
    if prompt_id is not None and prompt is None:
        raise ConfigError("reset was given a prompt_id without a prompt", "give both, or a prompt alone")
    for key, kind, words in (("seed", numbers.Integral, "whole number"), ("cost_per_nfe", numbers.Real, "number")):
        value: Any = options.get(key, 0)
        if not isinstance(value, kind) or not 0 <= float(value) < math.inf:
            raise ConfigError(f"the reset's {key} is {value!r:.100}", f"give a {words}, 0 or more, or leave it out")
    rng = np.random.default_rng([seed, episode])
    drawn, image_seed = source.sample(rng), int(rng.integers(2**31))
    cost_per_nfe = float(rng.uniform(*costs_per_nfe))
    if prompt is not None:
        drawn = Prompt.of(read(prompt) if isinstance(prompt, str) else prompt, prompt_id)
    return drawn, int(options.get("seed", image_seed)), float(options.get("cost_per_nfe", cost_per_nfe))


@dataclass(frozen=True)
class Slot:
    """The state of one lane of an environment.

    Attributes:
        seed: the lane's seed.
        episode: index of its current episode.
        lane: the image being generated.
        before: its scores at the previous decision.
        cost_per_nfe: cost per NFE in this episode.
        decisions: number of decisions taken in this episode.
        image: the finished image, once there is one.
        fault: why the episode was dropped, once it was; ``lane`` is then the state before the action that failed.
    """

    seed: int
    episode: int
    lane: Lane
    before: ImageScores | None
    cost_per_nfe: float
    decisions: int = 0
    image: GeneratedImage | None = None
    fault: Fault | None = None

    def after_step(self, result: tuple[Lane, GeneratedImage | None] | Fault) -> Slot:
        """The slot after its action, or unchanged except for the fault that the action met."""
        if isinstance(result, Fault):
            return evolved(self, decisions=self.decisions + 1, fault=result)
        lane, image = result
        return evolved(self, lane=lane, before=self.lane.scores, decisions=self.decisions + 1, image=image)

    def state(self) -> dict[str, Any]:
        """Plain tensors, numbers and strings, from which :meth:`restored` restores the slot."""
        return {
            "seed": self.seed,
            "episode": self.episode,
            "cost_per_nfe": self.cost_per_nfe,
            "decisions": self.decisions,
            "before": None if self.before is None else self.before.state(),
            "lane": self.lane.state(),
            "image": None if self.image is None else self.image.state(),
            "fault": None if self.fault is None else [self.fault.error.cause, self.fault.error.remedy],
        }

    @classmethod
    def restored(cls, backbone: Backbone, state: Mapping[str, Any]) -> Slot:
        """Restores a slot from :meth:`state`."""
        fault = state.get("fault")
        return cls(
            seed=state["seed"],
            episode=state["episode"],
            lane=restore_lane(backbone, state["lane"]),
            before=ImageScores.restored(state["before"]),
            cost_per_nfe=state["cost_per_nfe"],
            decisions=state["decisions"],
            image=GeneratedImage.restored(state.get("image")),
            fault=None if fault is None else Fault(AdDiffusionError(*fault)),
        )


def plain_copy(state: Any) -> Any:
    """Nested dicts and lists with their tensors copied to the CPU.

    Training keeps changing its own tensors, and a row of a batch would keep the storage of the whole batch.
    """
    if isinstance(state, torch.Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, Mapping):
        return {key: plain_copy(value) for key, value in state.items()}
    return [plain_copy(value) for value in state] if isinstance(state, list | tuple) else state


@dataclass(frozen=True)
class Framer:
    """Builds the frames of lanes for one backbone, process and set of scorers.

    Attributes:
        backbone: provides the noise path.
        process: provides the size of the budget.
        scorers: provide the prompts' embeddings.
        highest_cost_per_nfe: the cost per NFE that is normalised to 1.
    """

    backbone: Backbone
    process: ProcessConfig
    scorers: ImageScorers
    highest_cost_per_nfe: float

    def frame(
        self, lanes: Sequence[Lane], before: Sequence[ImageScores | None], costs_per_nfe: Sequence[float]
    ) -> Frame:
        """The decision states of ``B`` lanes as arrays, batch first.

        Args:
            lanes: each with its current scores.
            before: each lane's scores at the previous decision, or ``None``.
            costs_per_nfe: the cost per NFE of each lane.
        """
        width, utility = self.scorers.clip_dim, self.process.refine.utility
        sigma = torch.tensor([lane.sigma for lane in lanes], dtype=torch.float64)
        no_evidence = np.zeros(3, np.float32)
        no_features = torch.zeros(1, self.backbone.capabilities.feature_dim or 0, device=self.backbone.device)
        now = ImageScoresBatch.of([lane.scores for lane in lanes], width)
        best = ImageScoresBatch.of([None if lane.best is None else lane.best.scores for lane in lanes])
        clip_text = now.clip_text(self.scorers.clip, [lane.prompt for lane in lanes])
        return Frame.of(
            now,
            ImageScoresBatch.of(before),
            clip_text=clip_text,
            prior=utility.before(clip_text),
            x0_change=np.array([lane.change for lane in lanes]),
            log_snr=self.backbone.path.half_log_snr(sigma).clamp(*LOG_SNR_RANGE).numpy(),
            budget=np.array([lane.nfe for lane in lanes]) / self.max_nfe,
            refinements=np.array([lane.refinements for lane in lanes]) / max(1, self.process.refine.limit),
            cost_per_nfe=np.array(costs_per_nfe) / max(self.highest_cost_per_nfe, 1e-12),
            utility=now.liked(utility, np.array([lane.preview_step for lane in lanes])),
            best_utility=best.liked(utility),
            has_best=best.known.astype(np.float64),
            evidence=np.array([no_evidence if lane.evidence is None else lane.evidence for lane in lanes]),
            features=torch.cat([no_features if lane.features is None else lane.features for lane in lanes])
            .cpu()
            .numpy(),
            finished=np.array([float(lane.shown is not None) for lane in lanes]),
        )

    @cached_property
    def max_nfe(self) -> float:
        """Maximum NFE of an episode: every step and every refinement at its highest cost."""
        refine = self.process.refine
        schedule = self.process.nfe_of(self.backbone.sigmas(self.process.steps, self.process.spacing)[:-1])
        steps = schedule if isinstance(refine.steps, str) else float(refine.steps)
        maps = {"none": 0, "attention": 1, "phrase": 2}[refine.maps]  # phrase: 4 calls (3 phrases, the prompt) = 2 NFE
        return schedule + (refine.limit * (maps + steps) if refine.enabled else 0)


Columns = Mapping[str, Any]
"""Key -> one value per lane: a list, an array (B, ...), or again columns."""


@dataclass(frozen=True)
class InfoMaker:
    """Builds the infos of an environment.

    Attributes:
        image_size: (H, W) of a finished image.
        mask_size: (h, w) of a refinement mask; ``None`` if *refine* regenerates no regions.
        longest: maximum number of decisions in an episode.
        terms: names of the reward terms.
    """

    image_size: tuple[int, int]
    mask_size: tuple[int, int] | None
    longest: int
    terms: tuple[str, ...]

    @classmethod
    def of(cls, capabilities: Capabilities, process: ProcessConfig, terms: Iterable[str]) -> InfoMaker:
        """For a backbone, a decision process and the terms of a reward."""
        regions = process.refine.enabled and process.refine.region != "whole"
        masks = capabilities.latent_shape[-2:] if regions else None
        return cls(capabilities.image_size, masks, process.longest_episode, tuple(terms))

    def columns(
        self,
        slots: Sequence[Slot],
        actions: Sequence[int] | None = None,
        illegal: Sequence[bool] | None = None,
        paid: Mapping[str, np.ndarray] | None = None,
    ) -> Columns:
        """The infos of ``B`` lanes.

        Args:
            slots: the lanes' states.
            actions: the action that led to each; -1 (``None`` for all) after a reset.
            illegal: whether the requested action was illegal and replaced.
            paid: name -> (B,) value of each reward term; ``None`` for all 0.
        """
        count, lanes = len(slots), [slot.lane for slot in slots]
        scores = ImageScoresBatch.of([lane.scores for lane in lanes])
        traces = np.full((count, self.longest), -1, dtype=np.int8)
        images = np.zeros((count, *self.image_size, 3), np.uint8)
        for row, lane in enumerate(lanes):
            traces[row, : len(lane.actions)] = lane.actions
        if finished := {row: slot.image for row, slot in enumerate(slots) if slot.image is not None}:
            images[list(finished)] = pixels_of(list(finished.values()))
        nothing = [0.0] * count
        columns: dict[str, Any] = {
            "prompt": [lane.prompt.text for lane in lanes],
            "prompt_id": [lane.prompt.prompt_id for lane in lanes],
            "task": [lane.prompt.task for lane in lanes],
            "seed": [lane.seed for lane in lanes],
            "sigma": np.array([lane.sigma for lane in lanes], np.float64),
            "step": [lane.step for lane in lanes],
            "nfe": np.array([lane.nfe for lane in lanes], np.float64),
            "network_calls": [lane.calls for lane in lanes],
            "refinements": [lane.refinements for lane in lanes],
            "cost_per_nfe": np.array([slot.cost_per_nfe for slot in slots], np.float64),
            # Zero and a flag, not NaN: Gymnasium's checker compares infos, and NaN is equal to nothing.
            "has_scores": scores.known.tolist(),
            "clip_score": scores.score("clip_score"),
            "preference": scores.score("preference"),
            "action": [-1] * count if actions is None else list(actions),
            "illegal_action": [False] * count if illegal is None else list(illegal),
            "action_trace": traces,
            "reward_terms": {name: nothing if paid is None else paid[name].tolist() for name in self.terms},
            "fault": ["" if slot.fault is None else slot.fault.error.cause for slot in slots],
            "has_image": [slot.image is not None for slot in slots],
            "image": images,
        }
        if self.mask_size is not None:
            columns["refine_mask"] = masks = np.zeros((count, *self.mask_size), np.float32)
            for row, lane in enumerate(lanes):
                if (mask := lane.refine_mask) is not None:
                    masks[row] = mask
        return columns


def info_of(columns: Columns, row: int) -> dict[str, Any]:
    """One lane's info; its arrays are copies."""
    info: dict[str, Any] = {}
    for key, column in columns.items():
        if isinstance(column, Mapping):
            info[key] = info_of(column, row)
        else:
            info[key] = column[row].copy() if getattr(column, "ndim", 1) > 1 else column[row]
    return info
