"""The scalar environment: one image per episode."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from addiffusion_env.envs.episodes import Episodes
from addiffusion_env.envs.infos import info_of
from addiffusion_env.envs.rendering import View
from addiffusion_env.envs.settings import RENDER_MODES, EnvSettings
from addiffusion_env.envs.slot import ActionSpace
from addiffusion_env.envs.state import Restorable

Observation = dict[str, np.ndarray]


class AdDiffusionEnv(Restorable, gym.Env[Observation, np.int64]):
    """The denoising loop of a text-to-image model as a Markov decision process.

    At each decision the agent may *continue* (0: a standard step), *stop* (1: early exit in a few evaluations) or
    *refine* (2: regenerate a region). The episode terminates with the finished image; ``max_decisions`` truncates it.

    Observation: ``Dict(clip, timestep, quality)``, float32 in [-1, 1]; see
    :mod:`addiffusion_env.observations.features`. With a cost per NFE range there is a fourth key, ``cost_per_nfe``.

    ``info`` has the same keys, shapes and types from reset to the end, so that any buffer can store it: prompt,
    prompt_id, task, seed, sigma, step, nfe, network_calls, refinements, cost_per_nfe; clip_score and preference of the
    last scored image (0 while ``has_scores`` is false); the last action (-1 after a reset), illegal_action,
    reward_terms (name -> float); action_trace, the actions so far, int8, padded with -1; image, (H, W, 3) uint8, zeros
    until the episode has ended with an image (``has_image``); fault, why the episode was dropped, or "". Where *refine*
    can regenerate a region also refine_mask, (h, w) float32 in [0, 1] at the latents' resolution, zeros unless the last
    action did so.

    Args:
        **settings: the fields of :class:`addiffusion_env.envs.settings.EnvSettings`.

    >>> import gymnasium as gym, addiffusion_env
    >>> env = gym.make("AdDiffusion-Emoji-v2")
    >>> observation, info = env.reset(seed=0)
    >>> sorted((key, value.shape) for key, value in observation.items())
    [('correctness', (4,)), ('cost_per_nfe', (1,)), ('prior', (1,)), ('spent', (3,)), ('timestep', (128,))]
    >>> observation, reward, terminated, truncated, info = env.step(1)  # an early exit, whose image is scored
    >>> terminated, float(info["nfe"]), info["image"].shape
    (False, 1.5, (64, 64, 3))
    """

    metadata = {"render_modes": [*RENDER_MODES], "render_fps": 4}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(self, **settings: Any) -> None:
        self.settings = EnvSettings.of(**settings)
        self.episodes = Episodes(self.settings, 1)
        self.observation_space: gym.spaces.Dict = self.episodes.observer.space  # type: ignore[assignment]
        self.action_space = ActionSpace()
        self.render_mode = self.settings.render_mode
        self.view = View(self.episodes, self.render_mode, self.metadata["render_fps"])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins an episode.

        Args:
            seed: the environment's seed; determines the prompt and noise of this and all following episodes.
            options: ``prompt`` (text) and ``prompt_id`` set the prompt, ``seed`` the image's noise, ``cost_per_nfe``
                the cost per NFE.
        """
        super().reset(seed=seed)
        if seed is None and self.episodes.slots[0] is None:
            seed = int(self.np_random.integers(2**31))
        info = self.episodes.begin(0, seed, options)
        self.view.reset()
        return self._row(self.episodes.observe()), info

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes an action.

        Raises:
            IllegalActionError: for a value that is not an action (a number, or an array or tensor that holds one); in
                strict mode also for a masked action.
            EpisodeOverError: before ``reset`` or after the end.
        """
        result = self.episodes.step(action)
        self.view.stepped(0, bool(result.terminated[0] or result.truncated[0]))
        self.view.show()
        return (
            self._row(result.observation),
            float(result.reward[0]),
            bool(result.terminated[0]),
            bool(result.truncated[0]),
            info_of(result.infos, 0),
        )

    def action_masks(self) -> np.ndarray:
        """(3,) bool: which actions are legal now, as sb3-contrib's MaskablePPO expects.

        ``action_space.sample(mask=...)`` accepts it. Gymnasium's wrappers do not forward methods: on a wrapped
        environment call ``env.get_wrapper_attr("action_masks")()``.
        """
        return self.episodes.action_masks()[0]

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Renders the episode according to the render mode.

        Returns:
            ``rgb_array``: the preview above the action strip, a refined region marked, (296, 256, 3) uint8.
            ``filmstrip``: the filmstrip of the episode so far, one cell of 122 by 96 per decision, of constant size.
            ``None`` in mode ``human``, whose window is updated by ``reset`` and ``step``, and without a mode.
        """
        if self.render_mode is None:
            gym.logger.warn("render() was called without a render_mode; pass render_mode='rgb_array' to make()")
            return None
        return None if self.render_mode == "human" else self.view.render()[0]

    def close(self) -> None:
        """Closes the window of mode ``human``."""
        self.view.close()

    @staticmethod
    def _row(observation: Observation) -> Observation:
        return {key: value[0] for key, value in observation.items()}
