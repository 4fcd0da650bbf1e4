"""From lanes to frames: what environments and pipelines both show to a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.lane import Lane
from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.observations.frame import LOG_SNR_RANGE, Frame
from addiffusion_env.scorers.look import Look, LookScorers


@dataclass(frozen=True)
class Point:
    """One lane at a decision.

    Attributes:
        lane: the lane; its look is what is seen now.
        before: its look at the decision before, or ``None``.
        price: of one NFE.
    """

    lane: Lane
    before: Look | None
    price: float


@dataclass(frozen=True)
class Framer:
    """Makes frames for one backbone, process and set of scorers.

    Attributes:
        backbone: for its noise path.
        process: for the size of the budget.
        scorers: for the prompts' embeddings.
        highest_price: the price that is shown as 1.
    """

    backbone: Backbone
    process: ProcessConfig
    scorers: LookScorers
    highest_price: float

    def frame(self, points: Sequence[Point]) -> Frame:
        """The decision points as arrays, batch first."""
        lanes = [point.lane for point in points]
        looks, before = [lane.look for lane in lanes], [point.before for point in points]
        sigma = torch.tensor([lane.sigma for lane in lanes], dtype=torch.float64)
        none = np.zeros(3, np.float32)
        blank = np.zeros(self.scorers.clip_dim, np.float32)
        unfelt = torch.zeros(1, self.backbone.capabilities.feature_dim or 0, device=self.backbone.device)
        refine, best = self.process.refine, [lane.best for lane in lanes]
        return Frame(
            clip_image=np.stack([look.clip_image[0] if look else blank for look in looks]),
            clip_text=self.scorers.clip.embed_texts([lane.prompt for lane in lanes]).numpy(),
            clip_score=column(looks, "clip_score"),
            clip_before=column(before, "clip_score"),
            preference=column(looks, "preference"),
            preference_before=column(before, "preference"),
            dino_similarity=np.array([similarity(now, then) for now, then in zip(looks, before, strict=True)]),
            x0_change=np.array([lane.change for lane in lanes]),
            log_snr=self.backbone.path.half_log_snr(sigma).clamp(*LOG_SNR_RANGE).numpy(),
            budget=np.array([lane.nfe for lane in lanes]) / self.most,
            refinements=np.array([lane.refinements for lane in lanes]) / max(1, refine.limit),
            price=np.array([point.price for point in points]) / max(self.highest_price, 1e-12),
            liking=np.array([refine.liking.at(look) if look else 0.0 for look in looks]),
            best_liking=np.array([refine.liking.at(picture.look) if picture else 0.0 for picture in best]),
            has_best=np.array([float(picture is not None) for picture in best]),
            evidence=np.stack([none if lane.evidence is None else lane.evidence for lane in lanes]),
            features=torch.cat([unfelt if lane.features is None else lane.features for lane in lanes]).cpu().numpy(),
            finished=np.array([float(lane.shown is not None) for lane in lanes]),
        )

    @cached_property
    def most(self) -> float:
        """NFE of an episode that takes every step and every refinement at its dearest."""
        refine = self.process.refine
        way = self.backbone.sigmas(self.process.steps, self.process.spacing)[:-1]
        again = self.process.nfe_of(way) if isinstance(refine.steps, str) else float(refine.steps)
        maps = {"none": 0, "attention": 1, "phrase": 2}[refine.maps]  # three phrases and the whole: two evaluations
        return self.process.nfe_of(way) + (refine.limit * (maps + again) if refine.enabled else 0)


def similarity(now: Look | None, before: Look | None) -> float:
    """Cosine of two looks' DINO embeddings, each of one picture; 0 where one is missing."""
    return float(now.dino[0] @ before.dino[0]) if now is not None and before is not None else 0.0


def column(looks: Sequence[Look | None], name: str, absent: float = 0.0) -> np.ndarray:
    """(B,) a score of each look; ``absent`` where nobody looked."""
    return np.array([float(getattr(look, name)[0]) if look else absent for look in looks])
