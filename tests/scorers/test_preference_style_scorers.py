"""HPSv2, the aesthetic predictor and sharpness."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from scorer_models import TINY_CLIP, head_state, random_weights

from addiffusion_env.errors import UnknownNameError, WeightsError
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers.aesthetic import AestheticScorer
from addiffusion_env.scorers.clip import ClipScorer
from addiffusion_env.scorers.hps import HpsScorer
from addiffusion_env.scorers.preprocess import CLIP_MEAN, CLIP_STD
from addiffusion_env.scorers.sharpness import SharpnessScorer

PROMPTS = [Prompt.of("a dog"), Prompt.of("two books")]


@pytest.fixture(scope="module")
def hps_file(tmp_path_factory, clip_folder):
    """A small model's weights as HPS_v2.1_compressed.pt wraps them, its config known to open_clip as "tiny-hps"."""
    import open_clip
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("hps")
    (folder / "tiny-hps.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(folder)
    state = load_file(clip_folder / "open_clip_model.safetensors")
    torch.save({"epoch": 3, "state_dict": state}, folder / "HPS_v2.1_compressed.pt")
    return folder / "HPS_v2.1_compressed.pt"


@torch.no_grad()
def test_hps_is_the_raw_cosine_with_black_bars(hps_file, make_images):
    import open_clip

    hps = HpsScorer.from_pretrained(hps_file, architecture="tiny-hps")
    model = open_clip.CLIP(**TINY_CLIP)
    model.load_state_dict(torch.load(hps_file)["state_dict"])
    wide = make_images(2, 32)[..., 8:24, :]  # 16 high, 32 wide
    bars = F.pad((wide + 1) / 2, (0, 0, 8, 8))
    pixels = (bars - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    tokens = open_clip.SimpleTokenizer(context_length=16)([prompt.text for prompt in PROMPTS])
    model.eval()
    wanted = (model.encode_image(pixels, normalize=True) * model.encode_text(tokens, normalize=True)).sum(1)
    assert torch.allclose(hps.score(wide, PROMPTS), wanted, atol=1e-5)
    assert hps.label == "HPSv2.1 tiny-hps"
    assert hps.unit == "cosine"


def test_hps_refuses_other_files_and_models(hps_file, image_reward_folder):
    with pytest.raises(UnknownNameError, match="open_clip model 'vit-h'"):
        HpsScorer.from_pretrained(hps_file, architecture="vit-h")
    with pytest.raises(WeightsError, match="missing: "):
        HpsScorer.from_pretrained(image_reward_folder / "ImageReward.pt", architecture="tiny-hps")
    with pytest.raises(WeightsError, match="no such weights file"):
        HpsScorer.from_pretrained("/absent/HPS_v2.1_compressed.pt")


@pytest.fixture
def head_file(tmp_path):
    state = random_weights(head_state((16, 12, 8, 8, 4, 1)), "", torch.Generator().manual_seed(2))
    torch.save(state, tmp_path / "head.pth")
    return tmp_path / "head.pth"


def test_aesthetic_is_the_linear_head_of_the_unit_embedding(head_file, clip_folder, make_images):
    clip = ClipScorer.from_pretrained(clip_folder)
    scorer = AestheticScorer.from_pretrained(head_file, clip=clip)
    wanted = clip.embed_images(make_images(2))
    assert torch.allclose(wanted.norm(dim=1), torch.ones(2), atol=1e-6)
    state = torch.load(head_file)
    for position in (0, 2, 4, 6, 7):
        wanted = F.linear(wanted, state[f"layers.{position}.weight"], state[f"layers.{position}.bias"])
    scores = scorer.score(make_images(2), PROMPTS)
    assert torch.allclose(scores, wanted[:, 0], atol=1e-5)
    assert torch.equal(scores, scorer.score(make_images(2), PROMPTS[::-1])), "the prompt must not matter"


def test_aesthetic_head_must_fit_its_clip_and_be_there(tmp_path, clip_folder):
    clip = ClipScorer.from_pretrained(clip_folder)
    with pytest.raises(WeightsError, match=r"curl -L .*sac%2Blogos"):
        AestheticScorer.from_pretrained(tmp_path / "absent.pth", clip=clip)
    torch.save(random_weights(head_state((768, 12, 8, 8, 4, 1)), "", torch.Generator()), tmp_path / "head.pth")
    with pytest.raises(WeightsError, match=r"of another shape: 0\.weight \(12, 768\) instead of \(12, 16\)"):
        AestheticScorer.from_pretrained(tmp_path / "head.pth", clip=clip)
    # A head with activations between its layers numbers them differently and would be scored wrongly.
    torch.save({f"layers.{i}.{k}": torch.zeros(1) for i in (0, 3) for k in ("weight", "bias")}, tmp_path / "relu.pth")
    with pytest.raises(WeightsError, match=r"missing: 2\.bias.*unexpected: 3\.bias, 3\.weight"):
        AestheticScorer.from_pretrained(tmp_path / "relu.pth", clip=clip)


def test_sharpness_of_a_chequerboard_has_a_closed_form():
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    board = ((rows + columns) % 2).float()
    image = (board * 0.5).expand(1, 3, 8, 8)  # grey levels 127.5 and 191.25: every Laplacian is +-4 * 63.75
    assert SharpnessScorer().score(image, PROMPTS[:1]).item() == pytest.approx((4 * 63.75) ** 2, rel=1e-5)
    flat = torch.full((1, 3, 8, 8), 0.3)
    assert SharpnessScorer().score(flat, PROMPTS[:1]).item() == pytest.approx(0, abs=1e-6)


def test_sharpness_equals_scipys_mirrored_laplacian(make_images):
    ndimage = pytest.importorskip("scipy.ndimage")
    images = make_images(2, 24)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    grey = (((images + 1) * 127.5) * weights).sum(1).double().numpy()
    wanted = [ndimage.laplace(image, mode="mirror").var() for image in grey]
    assert SharpnessScorer().score(images, PROMPTS).tolist() == pytest.approx(wanted, rel=1e-3)


def test_sharpness_falls_with_blur(make_images):
    sharp = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    blurred = F.avg_pool2d(sharp, 3, stride=1, padding=1)
    scores = SharpnessScorer().score(torch.cat([sharp, blurred]), PROMPTS)
    assert scores[0] > 5 * scores[1]
