"""PSNR and LPIPS of pairs, and seconds and memory of a stretch of work."""

import math
import time

import numpy as np
import pytest
import torch
from PIL import Image

from addiffusion_env.errors import ConfigError, ImageRangeError, UnknownNameError, WeightsError
from addiffusion_env.profiling import Meter
from addiffusion_lab.metrics.measure import image_metrics
from addiffusion_lab.metrics.settings import MetricSettings


def bytes_like(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_psnr_is_its_definition():
    reference = np.full((2, 8, 8, 3), 100, dtype=np.uint8)
    found = image_metrics(reference + np.array([10, 1], dtype=np.uint8)[:, None, None, None], reference, ["psnr"])
    assert found["psnr"].values == pytest.approx((20 * math.log10(25.5), 20 * math.log10(255)))
    assert found["psnr"].value == pytest.approx(np.mean(found["psnr"].values))
    assert found["psnr"].higher_is_better and found["psnr"].n == 2 and not found["psnr"].notes


def test_psnr_agrees_with_torchmetrics_on_floats():
    psnr = pytest.importorskip("torchmetrics.functional.image").peak_signal_noise_ratio
    first, second = (torch.from_numpy(bytes_like((3, 16, 12, 3), seed)).permute(0, 3, 1, 2) for seed in (0, 1))
    found = image_metrics(*(pixels.float() / 127.5 - 1 for pixels in (first, second)), ["psnr"])["psnr"]
    expected = [float(psnr(a.double(), b.double(), data_range=255.0)) for a, b in zip(first, second, strict=True)]
    assert found.values == pytest.approx(expected, rel=1e-6)


def test_identical_images_count_the_cap_and_are_told():
    images = bytes_like((2, 8, 8, 3))
    other = images.copy()
    other[1] ^= 1
    found = image_metrics(images, other, ["psnr"], MetricSettings())["psnr"]
    assert found.values == pytest.approx((100, 20 * math.log10(255)))
    assert found.settings["identical"] == 1
    assert found.notes == ("1 of 2 images are identical to their reference and count 100 dB",)


@pytest.mark.parametrize(
    ("first", "second", "error", "words"),
    [
        (bytes_like((2, 8, 8, 3)), bytes_like((3, 8, 8, 3)), ConfigError, "2 images but 3 references"),
        (bytes_like((1, 8, 8, 3)), bytes_like((1, 8, 9, 3)), ImageRangeError, "(8, 8, 3) but its reference is (8, 9"),
        (torch.full((1, 3, 8, 8), 200.0), bytes_like((1, 8, 8, 3)), ImageRangeError, "must lie in [-1, 1]"),
        (np.zeros((1, 8, 8, 3)), bytes_like((1, 8, 8, 3)), ImageRangeError, "got float64 (8, 8, 3)"),
        ([], [], ConfigError, "needs images, got none"),
        ("/no/folder", [], ConfigError, "/no/folder is not a folder"),
        (["/no/file.png"], bytes_like((1, 8, 8, 3)), ConfigError, "no image at /no/file.png"),
    ],
)
def test_images_that_cannot_be_paired_are_refused(first, second, error, words):
    with pytest.raises(error) as caught:
        image_metrics(first, second, ["psnr"])
    assert words in str(caught.value)


def test_a_cut_file_is_named(tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(bytes_like((16, 16, 3))).save(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ConfigError, match=r"cut\.png cannot be read as an image"):
        image_metrics(tmp_path, bytes_like((1, 16, 16, 3)), ["psnr"])
    with pytest.raises(ConfigError, match="a file of 60 bytes cannot be read as an image"):
        image_metrics([path.read_bytes()], bytes_like((1, 16, 16, 3)), ["psnr"])
    (tmp_path / "cut.png").unlink()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.png cannot be read: Is a directory"):
        image_metrics(tmp_path, bytes_like((1, 16, 16, 3)), ["psnr"])


def test_an_unknown_metric_is_refused_before_anything_is_read():
    with pytest.raises(UnknownNameError, match="did you mean 'lpips'"):
        image_metrics("/no/folder", "/no/folder", ["psnr", "lpip"])


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """The features of torchvision's AlexNet with random weights, under the names of its file."""
    from torchvision.models import alexnet

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    state = {f"features.{name}": value for name, value in alexnet(weights=None).features.state_dict().items()}
    torch.save(state, path)
    return path


def test_lpips_agrees_with_another_package_on_the_same_weights(trunk):
    pytest.importorskip("lpips")
    module = pytest.importorskip("torchmetrics.functional.image.lpips")
    first, second = (torch.from_numpy(bytes_like((2, 40, 64, 3), seed)).permute(0, 3, 1, 2) for seed in (0, 1))
    first, second = first.float() / 127.5 - 1, second.float() / 127.5 - 1
    found = image_metrics(first, second, ["lpips"], MetricSettings(lpips_weights=trunk))["lpips"]

    other = module._LPIPS(net="alex", pnet_rand=True)
    state = torch.load(trunk, weights_only=True)
    other.net.load_state_dict({key: state[f"features.{key.split('.', 1)[1]}"] for key in other.net.state_dict()})
    with torch.no_grad():
        expected = other(first, second).flatten().tolist()
    assert found.values == pytest.approx(expected, rel=1e-4) and min(expected) > 0
    assert found.value == pytest.approx(np.mean(expected), rel=1e-4)
    assert found.backend.startswith("lpips ") and found.settings["network"] == "alex"


def test_lpips_of_equal_images_is_zero_and_of_tiny_ones_refused(trunk):
    pytest.importorskip("lpips")
    settings = MetricSettings(lpips_weights=trunk)
    images = bytes_like((1, 32, 32, 3))
    assert image_metrics(images, images, ["lpips"], settings)["lpips"].value == 0
    with pytest.raises(ImageRangeError, match="needs at least 32 pixels per side, got 31x32"):
        image_metrics(images[:, 1:], images[:, 1:], ["lpips"], settings)


def test_lpips_refuses_other_weights(trunk, tmp_path):
    pytest.importorskip("lpips")
    images = bytes_like((1, 32, 32, 3))
    with pytest.raises(WeightsError, match="no weights at /nowhere"):
        image_metrics(images, images, ["lpips"], MetricSettings(lpips_weights="/nowhere"))
    with pytest.raises(WeightsError, match="not torchvision's squeeze: it lacks"):
        image_metrics(images, images, ["lpips"], MetricSettings(lpips_weights=trunk, lpips_network="squeeze"))
    state = torch.load(trunk, weights_only=True)
    wrong = tmp_path / "wrong.pth"
    torch.save({**state, "features.0.weight": torch.zeros(1)}, wrong)
    with pytest.raises(WeightsError, match=r"not torchvision's alex: .*size mismatch"):
        image_metrics(images, images, ["lpips"], MetricSettings(lpips_weights=wrong))


def test_a_meter_sees_what_was_held_and_forgets_it_on_restart():
    meter = Meter()
    before = meter.read()
    block = np.ones(20_000_000)  # 160 MB, every page touched
    del block
    time.sleep(0.02)
    after = meter.read()
    assert after.seconds > before.seconds + 0.02
    if after.memory == "none":
        pytest.skip("this system does not tell a process its peak")
    assert after.memory == "rss" and after.peak_bytes - before.peak_bytes > 100e6
    meter.restart()
    again = meter.read()
    assert again.peak_bytes < after.peak_bytes - 100e6 and again.seconds < after.seconds
