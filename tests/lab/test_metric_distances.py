"""FID and KID: closed forms, another implementation, the shipped networks, reference features on the disk."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from addiffusion_env.errors import ConfigError, NumericsError, RunFolderError, UnknownNameError, WeightsError
from addiffusion_lab.metrics import METRICS
from addiffusion_lab.metrics.distances import frechet_distance, kernel_distance
from addiffusion_lab.metrics.features import cached_features, load_features
from addiffusion_lab.metrics.images import Images
from addiffusion_lab.metrics.measure import image_metrics
from addiffusion_lab.metrics.settings import FeatureNetwork, MetricSettings, SmallSampleWarning

pytest.importorskip("torchmetrics")
pytest.importorskip("torch_fidelity")


def gaussian(rng, n, mean, covariance):
    """n rows whose sample mean and covariance are exactly those given."""
    rows = rng.standard_normal((n, len(mean)))
    rows -= rows.mean(0)
    white = np.linalg.cholesky(np.linalg.inv(np.cov(rows, rowvar=False)))
    return rows @ white @ np.linalg.cholesky(covariance).T + mean


def test_fid_is_the_closed_form_of_two_gaussians():
    rng = np.random.default_rng(0)
    env_step, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    first, second = rng.uniform(0.5, 3, 6), rng.uniform(0.5, 3, 6)
    means = rng.standard_normal((2, 6))
    a = gaussian(rng, 400, means[0], env_step @ np.diag(first) @ env_step.T)
    b = gaussian(rng, 300, means[1], env_step @ np.diag(second) @ env_step.T)
    # Covariances with common axes commute: tr(C1 + C2 - 2 (C1 C2)^(1/2)) is a sum over axes.
    expected = ((means[0] - means[1]) ** 2).sum() + ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_kid_is_the_unbiased_estimate_over_all_pairs():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((12, 5)), rng.standard_normal((12, 5)) + 0.5

    def kernel(x, y):
        return (x @ y / 5 + 1) ** 3

    within = [np.mean([kernel(x[i], x[j]) for i in range(12) for j in range(12) if i != j]) for x in (a, b)]
    across = np.mean([kernel(x, y) for x in a for y in b])
    mean, spread = kernel_distance(a, b, subsets=3, size=12, seed=0)
    assert mean == pytest.approx(sum(within) - 2 * across, rel=1e-9)
    assert spread == pytest.approx(0, abs=1e-9)  # every subset is the whole


def test_kid_subsets_follow_the_seed_and_leave_the_global_generator_alone():
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((40, 5)), rng.standard_normal((50, 5))
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, again, other = (kernel_distance(a, b, subsets=5, size=10, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first[1] > 0
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.fixture(scope="module")
def scenes():
    """64 images of the emoji world's renderer: one sprite each, its class and place drawn at random."""
    from addiffusion_lab.emoji_training.renderer import Renderer, empty_layout

    rng = np.random.default_rng(3)
    layouts = empty_layout(64)
    layouts[:, 0] = np.stack(
        [
            rng.integers(0, 20, 64),
            rng.integers(0, 5, 64),
            rng.uniform(16, 48, 64),
            rng.uniform(16, 48, 64),
            np.full(64, 24.0),
        ],
        axis=1,
    )
    return Renderer()(layouts, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("features", ["dino", "clip"])
def test_distances_grow_with_the_share_of_collapsed_images(scenes, features):
    settings = MetricSettings(features=features, kid_subset_size=20, kid_subsets=10)
    reference = Images.of(scenes[:32])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallSampleWarning)
        levels = [
            image_metrics(
                torch.cat([scenes[32 : 64 - same], scenes[40:41].repeat(same, 1, 1, 1)]),
                reference,
                ["fid", "kid"],
                settings,
            )
            for same in (0, 16, 32)
        ]
    for name in ("fid", "kid"):
        clean, half, collapsed = (found[name].value for found in levels)
        assert clean < half < collapsed and collapsed > 2 * clean
    result = levels[0]["fid"]
    assert result.name == f"fid[{features}]" and result.n == 32 and result.settings["n_reference"] == 32
    assert result.backend.startswith("torch-fidelity ")


def test_fid_of_few_images_says_so(scenes):
    with pytest.warns(SmallSampleWarning) as seen:
        found = image_metrics(scenes[:8], scenes[8:24], ["fid", "kid"], MetricSettings(features="dino"))
    notes = found["fid"].notes
    assert notes[0] == "8 made images: FID needs 10000 or more to be compared with published numbers"
    assert notes[1].startswith("16 reference images") and "covariance is singular" in notes[2]
    assert found["kid"].settings["subset_size"] == 8 and "subsets of 8 images, not 1000" in found["kid"].notes[0]
    assert len(seen) == 4 and "note: 8 made images" in str(found["fid"])


def flat(identity="flat", calls=None):
    """A network whose features are each channel's mean and spread."""

    def embed(pixels):
        if calls is not None:
            calls.append(len(pixels))
        flat = pixels.float().flatten(2)
        return torch.cat([flat.mean(2), flat.std(2)], dim=1)

    return FeatureNetwork("flat", identity, 6, embed)


def test_reference_features_are_kept_by_content(scenes, tmp_path):
    calls: list[int] = []
    network = flat(calls=calls)
    first = cached_features(tmp_path, Images.of(scenes), network)
    assert sum(calls) == 64
    assert np.array_equal(cached_features(tmp_path, Images.of(scenes.clone()), network), first)
    assert sum(calls) == 64, "read from the disk"
    cached_features(tmp_path, Images.of(scenes * 0.9), network)
    assert sum(calls) == 128, "other images"
    cached_features(tmp_path, Images.of(scenes), flat("other", calls))
    assert sum(calls) == 192, "another network"
    assert len(list(tmp_path.iterdir())) == 3, "no part is left over"


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"\x93NUMPY")])
def test_damaged_features_are_computed_again(scenes, tmp_path, damage):
    first = cached_features(tmp_path, Images.of(scenes), flat())
    damage(next(tmp_path.iterdir()))
    with pytest.warns(UserWarning, match="recomputing"):
        assert np.array_equal(cached_features(tmp_path, Images.of(scenes), flat()), first)
    assert np.array_equal(np.load(next(tmp_path.iterdir())), first), "and mended"


def test_a_cache_that_cannot_be_written_is_named(scenes, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot keep reference features"):
        cached_features(tmp_path / "file", Images.of(scenes), flat())


def test_the_same_images_have_one_digest_whatever_holds_them(scenes, tmp_path):
    pixels = [item for item in Images.of(scenes[:3])]
    for number, item in enumerate(pixels):
        Image.fromarray(item).save(tmp_path / f"{number}.png")
    files = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    digests = {Images.of(source).digest() for source in (scenes[:3], np.stack(pixels), tmp_path, pixels, files)}
    assert len(digests) == 1
    assert Images.of(scenes[:3].flip(0)).digest() not in digests


def test_lossy_files_are_noted(scenes, tmp_path):
    for number, item in enumerate(Images.of(scenes[:4])):
        Image.fromarray(item).save(tmp_path / f"{number}.jpg")
    with pytest.warns(SmallSampleWarning):
        found = image_metrics(scenes[:4], tmp_path, ["kid"], MetricSettings(features=flat()))
    assert found["kid"].notes[-1].startswith("4 reference images use lossy compression")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "RGB"])
def test_files_of_every_mode_are_read_as_torch_fidelity_reads_them(tmp_path, mode):
    from torch_fidelity.datasets import ImagesPathDataset

    colours = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)  # with transparent pixels
    path = tmp_path / "image.png"
    Image.fromarray(colours).convert(mode).save(path)
    [read] = Images.of([path])
    assert torch.equal(torch.from_numpy(read.copy()).permute(2, 0, 1), ImagesPathDataset([path])[0])


def test_a_file_of_sixteen_bits_is_refused_not_clipped_to_white(tmp_path):
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ConfigError, match=r"deep\.png has more than 8 bits per pixel .*'I;16'"):
        list(Images.of([tmp_path / "deep.png"]))


def test_features_that_are_not_finite_are_refused(scenes):
    network = FeatureNetwork("bad", "bad", 1, lambda pixels: torch.full((len(pixels), 1), float("nan")))
    with pytest.raises(NumericsError, match="feature network bad"):
        image_metrics(scenes[:4], scenes[4:8], ["fid"], MetricSettings(features=network))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"features": "inceptoin"}, UnknownNameError, "did you mean 'inception'"),
        ({"lpips_network": "alexnet"}, UnknownNameError, "did you mean 'alex'"),
        ({"batch": 0}, ConfigError, "batch must be at least 1, got 0"),
        ({"weights": "/nowhere.pth"}, WeightsError, "no weights at /nowhere.pth\n  -> download https://"),
    ],
)
def test_wrong_settings_say_what_is_wrong(scenes, change, error, words):
    with pytest.raises(error) as caught:
        image_metrics(scenes[:2], scenes[2:4], ["fid"], MetricSettings(**change))
    assert words in str(caught.value)


def test_one_image_is_no_distribution(scenes):
    with pytest.raises(ConfigError, match="2 or more images"):
        image_metrics(scenes[:1], scenes[1:], ["fid"], MetricSettings(features=flat()))


def test_a_file_that_is_no_inception_is_refused(tmp_path):
    garbage, other = tmp_path / "garbage.pth", tmp_path / "other.pth"
    garbage.write_bytes(b"<html>not found</html>")
    torch.save({"conv.weight": torch.zeros(1)}, other)
    with pytest.raises(WeightsError, match=r"cannot read .* as weights"):
        load_features(MetricSettings(weights=garbage))
    with pytest.raises(WeightsError, match="no Inception-v3 of the original FID"):
        load_features(MetricSettings(weights=other))


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory):
    """A file of Inception-v3 with random weights: the right names and shapes, so that it loads."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    with pytest.MonkeyPatch.context() as patch:  # its constructor insists on weights: let it keep its random ones
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        model = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(model.state_dict(), path)
    return path


def test_the_network_is_torchmetrics_at_299_pixels(random_inception):
    from torchmetrics.image.fid import NoTrainInceptionV3

    network = load_features(MetricSettings(weights=random_inception))
    other = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(random_inception)).eval()
    generator = torch.Generator().manual_seed(0)
    for size, equal in ((299, True), (400, False)):  # they resize in two ways
        pixels = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=generator)
        first = network.features(Images.of(pixels.permute(0, 2, 3, 1).numpy()))
        with torch.no_grad():
            second = other(pixels).numpy()
        assert first.shape == second.shape == (1, 2048)
        apart = np.abs(first - second).max() / np.abs(first).max()
        assert apart < 1e-4 if equal else apart > 0.1
    assert network.name == "inception" and "TensorFlow 1 bilinear" in network.identity


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_loads(name):
    assert callable(METRICS.load(name))
