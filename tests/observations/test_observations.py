"""Observations: lengths, bounds, and the meaning of each number."""

import numpy as np
import pytest

from addiffusion_env.checks.base import hold
from addiffusion_env.checks.observations import OBSERVATION_CONTRACTS
from addiffusion_env.errors import CapabilityError, ConfigError, ContractError, NumericsError, UnknownNameError
from addiffusion_env.observations import FEATURES, OBSERVATION_PRESETS, needs_preview
from addiffusion_env.observations.features import QUALITY, Correctness, Frame, Observer, Spent, Timestep


def frame(size=4, width=768, seed=0, extreme=1.0, features=12):
    rng = np.random.default_rng(seed)
    unit = rng.normal(size=(2, size, width))
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    number = lambda: extreme * rng.normal(size=size)  # noqa: E731
    share = lambda: rng.uniform(size=size)  # noqa: E731
    return Frame(
        clip_image=unit[0],
        clip_text=unit[1],
        clip_score=number(),
        clip_before=number(),
        preference=number(),
        preference_before=number(),
        dino_similarity=number(),
        x0_change=abs(number()),
        log_snr=10 * number(),
        budget=share(),
        refinements=share(),
        cost_per_nfe=share(),
        utility=number(),
        best_utility=number(),
        has_best=np.ones(size),
        evidence=rng.uniform(size=(size, 3)),
        features=extreme * rng.normal(size=(size, features)),
        prior=number(),
        finished=np.arange(size) % 2.0,
    )


def test_sd15_observation_is_1672_numbers():
    observer = Observer(768)
    assert sum(box.shape[0] for box in observer.space.spaces.values()) == 1672
    assert sum(value.shape[1] for value in observer.observe(frame()).values()) == 1672


@pytest.mark.parametrize("extreme", [1.0, 1e3])
def test_everything_lies_in_its_space(extreme):
    observer = Observer(16, list(FEATURES), 12)
    batch = observer.observe(frame(width=16, extreme=extreme))
    for row in range(4):
        assert observer.space.contains({key: value[row] for key, value in batch.items()})


class Flat(Spent):
    """One number for each lane, without the axis of the key."""

    def make(self, frame):
        return frame.budget


class Unknown(Spent):
    """NaN in the second lane."""

    def make(self, frame):
        return np.where(np.arange(4)[:, None] == 1, np.nan, super().make(frame))


@pytest.mark.parametrize(
    ("made", "error", "sentence"),
    [
        (Flat, ContractError, r"key 'own' made an array of shape \(4,\), expected \(4, 3\)"),
        (Unknown, NumericsError, "key 'own' is NaN in lane 1"),
    ],
)
def test_what_a_key_of_ones_own_may_not_make(monkeypatch, made, error, sentence):
    monkeypatch.setitem(FEATURES._entries, "own", f"{__name__}:{made.__name__}")
    with pytest.raises(error, match=sentence):
        Observer(16, ["timestep", "own"]).observe(frame(width=16))


def test_an_observation_without_keys_is_refused():
    with pytest.raises(ConfigError, match=r"observation_keys has no key, got \[\]"):
        Observer(16, [])
    with pytest.raises(ConfigError, match=r"names a key twice, got \['clip', 'timestep', 'clip'\]"):
        Observer(16, ["clip", "timestep", "clip"])


def test_quality_names_its_numbers():
    one = frame(width=4)
    quality = FEATURES.load("quality")().make(one)
    np.testing.assert_allclose(quality[:, QUALITY.index("preference")], np.tanh(one.preference / 2))
    np.testing.assert_allclose(quality[:, QUALITY.index("clip_change")], one.clip_score - one.clip_before)
    np.testing.assert_allclose(quality[:, QUALITY.index("budget_spent")], one.budget)


def test_neighbouring_steps_of_a_long_schedule_differ():
    def at(value):
        from dataclasses import replace

        return Timestep().make(replace(frame(1), log_snr=np.array([value])))

    assert np.abs(at(0.0) - at(0.1)).max() > 0.2
    np.testing.assert_allclose(at(99.0), at(6.0))


def test_unknown_keys():
    with pytest.raises(UnknownNameError, match="did you mean 'timestep'"):
        Observer(8, ["timestap"])


def test_the_denoisers_features_do_not_depend_on_the_batch():
    from dataclasses import replace

    whole = frame(4, width=8, extreme=50.0)
    seen = FEATURES.load("features")().make(whole)
    assert np.abs(seen).max() < 1 and seen.std() > 0.2
    one = replace(whole, features=whole.features[2:3])
    np.testing.assert_allclose(FEATURES.load("features")().make(one), seen[2:3])
    unseen = replace(whole, features=np.zeros((4, 12)))
    np.testing.assert_array_equal(FEATURES.load("features")().make(unseen), 0)  # before the first evaluation


def test_checked_reads_finished_images_only():
    whole = frame(4, width=8)
    seen, calibrated = FEATURES.load("checked")().make(whole), FEATURES.load("correctness")().make(whole)
    finished = whole.finished > 0
    np.testing.assert_array_equal(seen[finished], calibrated[finished])
    np.testing.assert_array_equal(seen[~finished][:, [0, 2]], 0)  # no value for previews
    np.testing.assert_array_equal(
        seen[:, [1, 3]], calibrated[:, [1, 3]]
    )  # the best of earlier attempts is a finished image
    assert not needs_preview(OBSERVATION_PRESETS["denoiser_checked"])


def test_features_need_a_denoiser_that_has_them():
    with pytest.raises(CapabilityError, match="has none"):
        Observer(8, OBSERVATION_PRESETS["denoiser"])


@pytest.mark.parametrize("key", FEATURES)
def test_every_key_passes_its_contracts(key):
    assert len(hold(OBSERVATION_CONTRACTS, FEATURES.load(key))) == len(OBSERVATION_CONTRACTS)


class Hidden(Correctness):
    """Reads previews without declaring needs_preview."""

    needs_preview = False


class Nameless(Correctness):
    """Reads scores without declaring which."""

    shows = ()


class Pooled(Spent):
    """Standardised over the batch."""

    def make(self, frame):
        return super().make(frame) - super().make(frame).min(axis=0)


class Short(Spent):
    """Returns one number instead of three."""

    def make(self, frame):
        return super().make(frame)[:, :1]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Hidden, "it shows scores of previews"),
        (Nameless, "it shows utility"),
        (Pooled, "observation of lane . differs when it is alone"),
        (Short, r"its shape is \(4, 1\), declared is \(4, 3\)"),
    ],
)
def test_broken_keys_fail_their_contracts(kind, words):
    with pytest.raises(ContractError, match=words):
        hold(OBSERVATION_CONTRACTS, kind)
