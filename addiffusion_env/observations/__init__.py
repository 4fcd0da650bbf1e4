"""Observations: frames, and the registry of named observation keys. A new key is one class and one line here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from addiffusion_env.registry import Registry
from addiffusion_env.scorers.image_scores import ImageScoresBatch

FEATURES = Registry(
    "observation key",
    {
        "clip": "addiffusion_env.observations.features:Clip",
        "timestep": "addiffusion_env.observations.features:Timestep",
        "quality": "addiffusion_env.observations.features:Quality",
        "cost_per_nfe": "addiffusion_env.observations.features:CostPerNfe",
        "attempts": "addiffusion_env.observations.features:Attempts",
        "correctness": "addiffusion_env.observations.features:Correctness",
        "prior": "addiffusion_env.observations.features:Prior",
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
    """The decision states of ``B`` lanes. Before a lane's first clean prediction its image features are 0.

    Attributes:
        clip_image: (B, D) unit CLIP embedding of the preview.
        clip_text: (B, D) unit CLIP embedding of the prompt.
        clip_score: (B,) their cosine similarity.
        clip_before: (B,) the CLIP score at the previous decision.
        preference: (B,) preference score of the preview, in standard deviations.
        preference_before: (B,) the preference score at the previous decision.
        dino_similarity: (B,) cosine similarity of the DINO embeddings of this and the previous decision's preview; 0
            without one.
        x0_change: (B,) relative change of x0 at the last evaluation.
        log_snr: (B,) half log-SNR at the current noise level, clipped to :data:`LOG_SNR_RANGE`.
        budget: (B,) NFE spent as a fraction of the full schedule with every refinement, in [0, 1].
        refinements: (B,) refinements taken as a fraction of their limit, in [0, 1].
        cost_per_nfe: (B,) the cost per NFE as a fraction of its upper bound, in [0, 1].
        utility: (B,) utility of the preview or finished image (:class:`scorers.utility.Utility`); 0 without one.
        best_utility: (B,) utility of the best finished image of earlier attempts; 0 without one.
        has_best: (B,) whether there is one, 0 or 1.
        evidence: (B, 3) summary of the phrase maps (:func:`engine.regions.evidence_of`), in [0, 1]; 0 without any.
        features: (B, F) pooled output of the denoiser's middle block at the last evaluation, unnormalised; 0 before
            the first evaluation, and F is 0 if they are not recorded.
        prior: (B,) utility to expect of an image of the prompt before it is drawn; 0 without a calibrator.
        finished: (B,) whether the scored image is a finished one that can be accepted or replaced, 0 or 1.
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
    prior: np.ndarray
    finished: np.ndarray

    @classmethod
    def of(cls, now: ImageScoresBatch, before: ImageScoresBatch, **others: np.ndarray) -> Frame:
        """From the scores at this and the previous decision; ``others`` are the attributes not derived from scores."""
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
"""Range of half log-SNR: it covers pure noise (-2.7 on SD 1.5) to the last step (3.5); finished lanes are clipped."""
