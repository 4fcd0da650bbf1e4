"""Tolerances for results that differ by rounding because a network ran on batches of different sizes.

The order of sums in a float32 kernel depends on the batch shape, the thread count and the instruction set. Where two
code paths have the same shapes (one lane each) the tests require equality; elsewhere scores may differ by the
tolerances below, and a function of scores by the tolerance times its slope.

The largest differences over batches of 1, 2 and 4 lanes of the emoji backbone (12 attempts and their early exits) under
``ATEN_CPU_CAPABILITY`` default, avx2 and avx512 were 5.7e-6 in CLIP scores and 5.5e-5 in preferences: the chain of
denoiser calls amplifies 1e-7 that much. The tolerances are about four times as large.
"""

from dataclasses import replace

import numpy as np
import pytest

CLIP_SCORE = 2e-5
PREFERENCE = 2e-4
SEEN = PREFERENCE
"""For observations without a calibrator, which depend on scores, latents and features with a slope of at most 1."""
REWARD = PREFERENCE
"""For the default reward: ``sigmoid(p / 0.4)`` has slopes of at most 0.625, and gains have a weight of 0.05."""


def of_calibrator(calibrator, preference, clip_score, clip_text, step=1e-4):
    """Tolerance of log-odds: the calibrator's slopes times the tolerances of the scores.

    The emoji world's calibrator has slopes of up to 371 a unit of cosine: a correlation of .01 is much among images.
    """
    scores = preference.astype(np.float64), clip_score.astype(np.float64)
    here = calibrator(*scores, clip_text)
    by_preference = np.abs(calibrator(scores[0] + step, scores[1], clip_text) - here) / step
    by_clip = np.abs(calibrator(scores[0], scores[1] + step, clip_text) - here) / step
    return by_preference * PREFERENCE + by_clip * CLIP_SCORE


def assert_records_alike(ours, theirs):
    """Checks that records of the same images are equal, except for measurements; scores up to rounding."""
    assert [_exact(record) for record in ours] == [_exact(record) for record in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.preference == pytest.approx(other.preference, abs=PREFERENCE)
        assert one.clip_score == pytest.approx(other.clip_score, abs=CLIP_SCORE)
        # The judges' scores: relative to their size, since some are sums of squared pixels.
        assert one.extra == pytest.approx(other.extra, rel=1e-3, abs=PREFERENCE)


def _exact(record):
    extra = dict.fromkeys(record.extra, 0.0)
    return replace(record, seconds=0.0, peak_memory=None, preference=0.0, clip_score=0.0, extra=extra)
