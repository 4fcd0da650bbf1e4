"""What a pipeline does without a trained policy: the process of checked attempts and the rule that runs on it.

The defaults are the same for every pipeline. Nothing about them was measured on real weights; on the emoji world the
process of its environment id takes their place. :func:`addiffusion_env.calibrate` replaces the threshold and the early
exit by measured ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from addiffusion_env import ENVIRONMENTS
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.batches import Conditioning
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.envs.settings import EnvSettings, load_scorers
from addiffusion_env.errors import MissingPackageError, WeightsError
from addiffusion_env.prompts import Prompt
from addiffusion_env.samplers.checked_attempts import CheckedAttempts
from addiffusion_env.scorers.image_scores import ImageScorers, NoScorers

GUIDED = (0.28, 5.42)
"""Noise levels ``std / alpha`` between which guidance is on: the interval of Kynkaanniemi et al. 2024
(arXiv:2404.07724) for Stable Diffusion XL; on straight paths (flow matching) the levels of equal signal-to-noise."""

PROBE = "a photo of a red cup"
LINEAR = 1e-2
"""Largest relative deviation from a straight line at which guidance counts as linear in its scale."""

DECISIONS = ("decide_at", "decide_every")
SCHEDULE = ("steps", "spacing", "solver", "guidance_scale", "guidance_interval", "early_exit_steps", *DECISIONS)
"""Settings of an environment id that its backbone's default process takes over."""


def default_policy(backbone: Backbone, scorers: ImageScorers | None) -> tuple[CheckedAttempts, ImageScorers]:
    """The untrained policy of a pipeline and the scorers that it reads.

    With scorers: the first attempt exits after 60 % of the schedule; an image below the average preference (0 standard
    deviations) is attempted again in full, at most twice. Without: the early exit alone, with a warning.

    Args:
        backbone: the model.
        scorers: score finished images; ``None`` loads the backbone's own.
    """
    if scorers is None:
        scorers = scorers_there(backbone)
    return CheckedAttempts(attempts=1) if isinstance(scorers, NoScorers) else CheckedAttempts(), scorers


def scorers_there(backbone: Backbone) -> ImageScorers:
    """The backbone's scorers, downloaded if necessary; :class:`.NoScorers`, with a warning, where they are missing."""
    try:
        return load_scorers(backbone)
    except (WeightsError, MissingPackageError) as error:
        warnings.warn(
            f"no scorer: {error.cause}; images are not checked: early exit and guidance interval only\n"
            f"  -> {error.remedy}, or pass scorers=",
            stacklevel=3,
        )
        return NoScorers()


def default_settings(backbone: Backbone) -> dict[str, Any]:
    """The process of a pipeline without a trained policy, as keyword arguments of an environment.

    The process of the newest environment id of checked attempts on this backbone, where there is one; otherwise the
    pipeline's own schedule, solver and guidance scale, with guidance limited to :data:`GUIDED`
    (:func:`default_interval`).
    """
    for known in reversed(ENVIRONMENTS.values()):
        if known["backbone"] == backbone.name and known.get("check_finished"):
            return {key: known[key] for key in SCHEDULE if key in known}
    can, interval = backbone.capabilities, default_interval(backbone)
    return {
        "steps": can.default_steps,
        "spacing": can.default_spacing,
        "solver": can.default_solver,
        "guidance_scale": can.default_guidance,
        **({} if interval is None else {"guidance_interval": list(interval)}),
    }


def default_process(backbone: Backbone) -> ProcessConfig:
    """:func:`default_settings` as a process without refinement, from which a rule derives its own."""
    known: Mapping[str, Any] = {key: value for key, value in default_settings(backbone).items() if key not in DECISIONS}
    process = EnvSettings(refine="off", **known).process(backbone.capabilities, backbone.name)
    return replace(process, check_finished=False)


def default_interval(backbone: Backbone) -> tuple[float, float] | None:
    """:data:`GUIDED` in the backbone's own noise levels.

    ``None`` where limiting guidance saves nothing (none, or one network call with it as without) or changes more than
    the guidance: where the prediction is not linear in the scale, as with rescaled or renormalised guidance.
    """
    can = backbone.capabilities
    plain, guided = can.network_calls
    if not can.guidance or can.default_guidance <= 1 or guided <= plain:
        return None
    if not guidance_is_linear(backbone):
        return None
    # The level of a signal-to-noise ratio: half_log_snr decreases in sigma on every path.
    levels = np.geomspace(1e-4, 1e3, 4001)
    highest = float(backbone.sigmas(can.default_steps, can.default_spacing)[0])
    ratios = -backbone.path.half_log_snr(torch.from_numpy(levels).clamp(max=highest)).numpy()
    low, high = np.interp(np.log(GUIDED), ratios, levels)
    return float(f"{low:.4g}"), float(f"{high:.4g}")


def guidance_is_linear(backbone: Backbone) -> bool:
    """Whether the clean prediction is linear in the guidance scale, measured at scales 1, 2 and 4 on one image."""
    can = backbone.capabilities
    image = (Prompt.of(PROBE), 0)
    conditioning, latents, [levels] = backbone.begin([image], can.default_steps, can.default_spacing)
    scales = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    with torch.no_grad():
        x0 = backbone.predict(
            latents.x.repeat(3, *[1] * (latents.x.ndim - 1)),
            torch.full((3,), float(levels[0]), dtype=torch.float64),
            Conditioning.cat([conditioning] * 3),
            scales,
        ).x0.float()
    one, two, four = x0
    deviation = float((four - one - 3 * (two - one)).norm())
    return deviation <= LINEAR * max(float((four - one).norm()), 1e-12)
