"""The action space, and actions in whatever form a client sends them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from addiffusion_env.engine.process import Action
from addiffusion_env.errors import IllegalActionError


class ActionSpace(spaces.Discrete):
    """``Discrete(3)``; ``sample(mask=)`` also takes what :meth:`AdDiffusionEnv.action_masks` gives.

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
            mask: (3,) which may be drawn, bool or int8.
            probability: (3,) float64 that sum to 1.
        """
        return super().sample(None if mask is None else _int8(mask), probability)


class BatchedActionSpace(spaces.MultiDiscrete):
    """``num_envs`` of them; ``sample(mask=)`` also takes (num_envs, 3) masks in one array.

    Args:
        num_envs: lanes.
    """

    def __init__(self, num_envs: int, seed: int | np.random.Generator | None = None) -> None:
        super().__init__([len(Action)] * num_envs, seed=seed)

    def sample(self, mask: Any = None, probability: Any = None) -> np.ndarray:
        """Draws (num_envs,) actions.

        Args:
            mask: for each lane which may be drawn, bool or int8: (num_envs, 3), or Gymnasium's tuple.
            probability: for each lane, as a tuple.
        """
        return super().sample(None if mask is None else tuple(_int8(row) for row in mask), probability)


@batch_space.register(ActionSpace)
def _batched(space: ActionSpace, n: int = 1) -> BatchedActionSpace:
    """SyncVectorEnv's action space too takes masks in one array."""
    return BatchedActionSpace(n, seed=deepcopy(space.np_random))


def _int8(mask: Any) -> np.ndarray:
    """Gymnasium's type of a mask."""
    array = np.asarray(mask)
    return array.astype(np.int8) if array.dtype == bool else array


def numbers_of(actions: Any, lanes: int) -> list[int]:
    """One number a lane of what a client sent: a number, a list, an array or tensor of (lanes,) or (lanes, 1).

    Raises:
        IllegalActionError: for another count or shape, or what are no whole numbers.
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
        raise IllegalActionError(f"actions must be whole numbers, got {actions!r:.60}", "continue 0, stop 1, refine 2")
    return [int(action) for action in given.reshape(-1)]
