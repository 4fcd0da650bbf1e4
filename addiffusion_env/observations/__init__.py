"""What a policy sees: frames, and the named parts of an observation. A new one is one class and one line here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from addiffusion_env.registry import Registry
from addiffusion_env.scorers.utility import ImageScoresBatch

FEATURES = Registry(
    "observation key",
    {
        "clip": "addiffusion_env.observations.features:Clip",
        "timestep": "addiffusion_env.observations.features:Timestep",
        "quality": "addiffusion_env.observations.features:Quality",
        "cost_per_nfe": "addiffusion_env.observations.features:CostPerNfe",
        "attempts": "addiffusion_env.observations.features:Attempts",
        "correctness": "addiffusion_env.observations.features:Correctness",
        "checked": "addiffusion_env.observations.features:Checked",
        "phrases": "addiffusion_env.observations.features:Phrases",
        "features": "addiffusion_env.observations.features:DenoiserFeatures",
        "spent": "addiffusion_env.observations.features:Spent",
        "prompt": "addiffusion_env.observations.features:PromptEmbedding",
    },
)
"""Key -> a subclass of :class:`~addiffusion_env.observations.features.Feature`."""


@dataclass(frozen=True)
class Frame:
    """One decision point of ``B`` lanes. Where a lane has no image yet, image features are 0.

    Attributes:
        clip_image: (B, D) unit CLIP embedding of the preview.
        clip_text: (B, D) unit CLIP embedding of the prompt.
        clip_score: (B,) their cosine.
        clip_before: (B,) the cosine at the decision before.
        preference: (B,) preference score of the preview, in standard deviations.
        preference_before: (B,) the same at the decision before.
        dino_similarity: (B,) cosine of the preview's DINO embedding to that of the decision before; 0 without one.
        x0_change: (B,) relative change of x0 at the last evaluation.
        log_snr: (B,) half log-SNR where the lane is, clipped to :data:`LOG_SNR_RANGE`.
        budget: (B,) NFE spent over the NFE of the full schedule with every refinement, in [0, 1].
        refinements: (B,) refinements over their limit, in [0, 1].
        cost_per_nfe: (B,) the cost per NFE over the highest that is drawn, in [0, 1].
        utility: (B,) how much the preview or finished image is liked (:class:`scorers.utility.Utility`); 0 without one.
        best_utility: (B,) of the best finished image of earlier tries; 0 without one.
        has_best: (B,) whether there is one, 0 or 1.
        evidence: (B, 3) what phrase maps said (:func:`engine.regions.evidence_of`), in [0, 1]; 0 where none were made.
        features: (B, F) pooled output of the denoiser's middle block at the last evaluation, in its own scale; 0 before
            the first, and F is 0 where nobody kept them.
        finished: (B,) whether what is seen is a finished image that waits to be taken or tried again, 0 or 1.
    """

    clip_image: np.ndarray
    clip_text: np.ndarray
    clip_score: np.ndarray
    clip_before: np.ndarray
    preference: np.ndarray
    preference_before: np.ndarray
    dino_similarity: np.ndarray
    x0_change: np.ndarray
    log_snr: np.ndarray
    budget: np.ndarray
    refinements: np.ndarray
    cost_per_nfe: np.ndarray
    utility: np.ndarray
    best_utility: np.ndarray
    has_best: np.ndarray
    evidence: np.ndarray
    features: np.ndarray
    finished: np.ndarray

    @classmethod
    def of(cls, now: ImageScoresBatch, before: ImageScoresBatch, **others: np.ndarray) -> Frame:
        """From the looks at a decision and at the one before; ``others`` are the attributes that no look tells."""
        return cls(
            clip_image=now.scores.clip_image,
            clip_score=now.score("clip_score"),
            clip_before=before.score("clip_score"),
            preference=now.score("preference"),
            preference_before=before.score("preference"),
            dino_similarity=now.similarity(before),
            **others,
        )


LOG_SNR_RANGE = (-4.0, 6.0)
"""Half log-SNR from pure noise (-2.7 on SD 1.5) to its last step (3.5); beyond it lanes have landed."""
