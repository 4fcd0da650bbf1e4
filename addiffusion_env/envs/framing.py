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
from addiffusion_env.scorers.look_batch import LookBatch


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

    def frame(self, lanes: Sequence[Lane], before: Sequence[Look | None], prices: Sequence[float]) -> Frame:
        """The decision points of ``B`` lanes as arrays, batch first.

        Args:
            lanes: each with the look at what is seen now.
            before: each lane's look at the decision before, or ``None``.
            prices: of one NFE, for each lane.
        """
        width, liking = self.scorers.clip_dim, self.process.refine.liking
        sigma = torch.tensor([lane.sigma for lane in lanes], dtype=torch.float64)
        none = np.zeros(3, np.float32)
        unfelt = torch.zeros(1, self.backbone.capabilities.feature_dim or 0, device=self.backbone.device)
        now = LookBatch.of([lane.look for lane in lanes], width)
        best = LookBatch.of([None if lane.best is None else lane.best.look for lane in lanes])
        return Frame.of(
            now,
            LookBatch.of(before),
            clip_text=self.scorers.clip.embed_texts([lane.prompt for lane in lanes]).numpy(),
            x0_change=np.array([lane.change for lane in lanes]),
            log_snr=self.backbone.path.half_log_snr(sigma).clamp(*LOG_SNR_RANGE).numpy(),
            budget=np.array([lane.nfe for lane in lanes]) / self.most,
            refinements=np.array([lane.refinements for lane in lanes]) / max(1, self.process.refine.limit),
            price=np.array(prices) / max(self.highest_price, 1e-12),
            liking=now.liked(liking),
            best_liking=best.liked(liking),
            has_best=best.known.astype(np.float64),
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
