"""The calibrator finds planted groups without labels, and means more on easy prompts."""

import numpy as np
import pytest

from addiffusion_env.backbones.emoji import WEIGHTS
from addiffusion_env.backbones.identity import described
from addiffusion_env.errors import AdDiffusionError, ConfigError, UnknownNameError, WeightsError
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers.emoji import emoji_scorers
from addiffusion_env.scorers.utility import MOST, Calibrator, Utility, calibrator_of
from addiffusion_env.tabular import fit_calibrator as command

PROMPTS, ATTEMPTS = 400, 5


@pytest.fixture(scope="module")
def planted():
    """Scores of correct and incorrect images whose share depends on the prompt: half of them easy, half hard."""
    rng = np.random.default_rng(0)
    easy = rng.random(PROMPTS) < 0.5
    text = np.where(easy, 1.0, -1.0)[:, None] * np.eye(8)[0] + 0.3 * rng.normal(size=(PROMPTS, 8))
    right = rng.random((PROMPTS, ATTEMPTS)) < np.where(easy, 0.95, 0.4)[:, None]
    preference = np.where(right, 1.5, -0.5) + 0.6 * rng.normal(size=right.shape)
    clip = np.where(right, 0.8, 0.7) + 0.04 * rng.normal(size=right.shape)
    return easy, text, right, preference, clip


@pytest.fixture(scope="module")
def calibrator(planted):
    _, text, _, preference, clip = planted
    return Calibrator.fit(preference, clip, text, directions=4, ridge=5.0)


def test_it_is_calibrated_without_having_seen_a_verdict(planted, calibrator):
    _, text, right, preference, clip = planted
    chance = 1 / (1 + np.exp(-calibrator(preference, clip, text)))
    for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.0)):
        inside = (chance >= low) & (chance <= high)
        assert right[inside].mean() == pytest.approx(chance[inside].mean(), abs=0.1)


def test_the_same_scores_mean_more_on_an_easy_prompt(planted, calibrator):
    easy, text, _, _, _ = planted
    odds = calibrator(np.full(PROMPTS, 0.5), np.full(PROMPTS, 0.75), text)
    true_gap = np.log(0.95 / 0.05) - np.log(0.4 / 0.6)
    assert odds[easy].mean() - odds[~easy].mean() == pytest.approx(true_gap, abs=1.0)


def test_images_do_not_depend_on_their_neighbours(planted, calibrator):
    _, text, _, preference, clip = planted
    whole = calibrator(preference, clip, text)
    assert np.array_equal(calibrator(preference[3:4], clip[3:4], text[3:4]), whole[3:4])
    assert np.array_equal(calibrator(preference[:, 2], clip[:, 2], text), whole[:, 2])
    assert abs(whole).max() <= MOST


@pytest.fixture(scope="module")
def previewed(planted, calibrator):
    """Previews score lower and say less than finished images; (calibrator, preference, CLIP score) of two steps."""
    _, text, _, preference, clip = planted
    rng = np.random.default_rng(1)
    blurred = [0.5 * preference - 1.2 + spread * rng.normal(size=preference.shape) for spread in (0.6, 0.1)]
    seen = np.stack(blurred, -1), np.stack([clip - 0.1, clip - 0.05], -1)
    return calibrator.with_previews([3, 4], *seen, text, calibrator(preference, clip, text)), *seen


def test_previews_are_judged_by_what_becomes_of_them(planted, calibrator, previewed):
    _, text, right, preference, clip = planted
    fitted, seen, seen_clip = previewed
    brier = {}
    for at, step in enumerate((3, 4)):
        chance = 1 / (1 + np.exp(-fitted(seen[..., at], seen_clip[..., at], text, step)))
        assert chance.mean() == pytest.approx(right.mean(), abs=0.03)
        confident = chance > 0.8
        assert right[confident].mean() == pytest.approx(chance[confident].mean(), abs=0.05)
        brier[step] = ((chance - right) ** 2).mean()
        as_finished = 1 / (1 + np.exp(-calibrator(seen[..., at], seen_clip[..., at], text)))
        assert brier[step] < 0.5 * ((as_finished - right) ** 2).mean()
    assert brier[4] < brier[3] < right.mean() * (1 - right.mean())
    assert np.array_equal(fitted(preference, clip, text), calibrator(preference, clip, text))


def test_places_may_be_mixed_and_unknown_ones_are_refused(planted, previewed, tmp_path):
    _, text, _, _, _ = planted
    fitted, seen, seen_clip = previewed
    both = fitted(seen, seen_clip, text, np.array([3, 0]))
    assert np.array_equal(both[..., 0], fitted(seen[..., 0], seen_clip[..., 0], text, 3))
    assert np.array_equal(both[..., 1], fitted(seen[..., 1], seen_clip[..., 1], text))
    with pytest.raises(ConfigError, match=r"previews of the steps \[3, 4\].*asked about previews of \[5\]"):
        fitted(seen, seen_clip, text, np.array([3, 5]))
    fitted.save(tmp_path / "mine.safetensors")
    loaded = Calibrator.load(tmp_path / "mine.safetensors")
    assert np.array_equal(loaded(seen, seen_clip, text, np.array([3, 4])), fitted(seen, seen_clip, text, [3, 4]))


def test_a_calibrator_without_previews_reads_them_as_finished_images(planted, calibrator, previewed):
    """As those of earlier versions do; such a file and its identity are what they were."""
    _, text, _, preference, clip = planted
    assert np.array_equal(calibrator(preference, clip, text, 3), calibrator(preference, clip, text))
    assert set(described(calibrator)) == {"class", "centre", "basis", "prior", "means", "precisions"}
    assert described(calibrator) != described(previewed[0])


def test_files_go_round_and_damaged_ones_are_refused(calibrator, planted, tmp_path):
    _, text, _, preference, clip = planted
    path = tmp_path / "mine.safetensors"
    calibrator.save(path)
    utility = Utility.of({"calibrator": str(path)})
    assert np.array_equal(utility(preference, clip, text), calibrator(preference, clip, text))
    path.with_name("half.safetensors").write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match="half"):
        Calibrator.load(path.with_name("half.safetensors"))
    with pytest.raises(WeightsError, match="no calibrator"):
        calibrator_of(str(tmp_path / "missing.safetensors"))
    with pytest.raises(UnknownNameError, match="emoji"):
        Utility.of({"calibrator": "emojy"})


def test_too_few_prompts_are_refused(planted):
    _, text, _, preference, clip = planted
    with pytest.raises(ConfigError, match="64 directions"):
        Calibrator.fit(preference[:20], clip[:20], text[:20])


def test_the_shipped_calibrator_trusts_a_dog_more_than_a_layout():
    scorers = emoji_scorers(WEIGHTS)
    prompts = [Prompt.of("a photo of a dog"), Prompt.of("a photo of a bus left of a bear")]
    text = scorers.clip.embed_texts(prompts).numpy()
    for scores in ((0.0, 0.8), (0.5, 0.8), (1.0, 0.85)):
        dog, layout = Utility(calibrator="emoji")(*(np.full(2, score) for score in scores), text)
        assert dog > layout


def test_the_command_says_what_is_missing(tmp_path):
    with pytest.raises(SystemExit):
        command.main([str(tmp_path), str(tmp_path / "out.safetensors")])
    with pytest.raises(AdDiffusionError, match="no table of attempts"):
        command.read_tables(tmp_path)
