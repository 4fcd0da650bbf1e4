"""Each registered scorer against its reference implementation, on the same random weights: equal to 1e-5.

docs/scorers.md has the table of what is equal, what is not, and why.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from references import LARGE, SIZES, TEXTS, as_tensor, every_image, randomise, save_clip_folder, save_sentencepiece
from scorer_models import TINY_CLIP, head_state, random_weights
from test_image_reward_scorer import Written

from addiffusion_env.errors import ImageRangeError
from addiffusion_env.scorers import SCORERS
from addiffusion_env.scorers.aesthetic import AestheticScorer
from addiffusion_env.scorers.clip import ClipScorer
from addiffusion_env.scorers.dino import DinoEmbedder
from addiffusion_env.scorers.hps import HpsScorer
from addiffusion_env.scorers.image_reward import ImageRewardScorer
from addiffusion_env.scorers.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from addiffusion_env.scorers.sharpness import SharpnessScorer

TOLERANCE = 1e-5
REFERENCES = {
    "clip": "open_clip",
    "hps": "the transform of hpsv2, open_clip",
    "aesthetic": "open_clip, the authors' head",
    "dino": "transformers",
    "image_reward": "the arithmetic and the transform of image-reward",
    "image_reward_package": "it is the package",
    "blip_preference": "transformers",
    "emoji_preference": "blip_preference, and the sum over all readings of the objects",
    "sharpness": "scipy",
    "emoji_detector": "none: the emoji world's own model and rules",
}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
TEXT = {"width": 32, "heads": 2, "layers": 2}
VISION = TINY_CLIP["vision_cfg"]
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16}
CAPTION = {"context_length": 15, "vocab_size": 49408, "heads": 2, "layers": 1, "width": 32, "mlp_ratio": 2}

pytestmark = pytest.mark.filterwarnings("ignore:a scorer reads", "ignore:.*is read with the settings")


def test_every_scorer_has_a_reference_or_a_reason():
    assert set(SCORERS) == set(REFERENCES)


def clip_layouts(sentencepieces: int) -> dict[str, tuple[dict, dict]]:
    """Name -> model config and preprocessing: one small model for each layout that open_clip has."""
    siglip = {"context_length": 64, "vocab_size": sentencepieces, "no_causal_mask": True, "proj_bias": True} | TEXT
    siglip |= {"pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    siglip |= {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "tokenizer_kwargs": {"clean": "canonicalize"}}
    clipa = {"context_length": 32, "vocab_size": 64, "no_causal_mask": True, "pool_type": "last"} | TEXT
    clipa |= {"hf_tokenizer_name": "bert-base-uncased", "tokenizer_kwargs": {"strip_sep_token": True}}
    averaged = {**VISION, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
    coca = {**TINY_CLIP["text_cfg"], "context_length": 15, "embed_cls": True, "output_tokens": True}
    pooled = {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    return {
        "clip": (TINY_CLIP, {}),
        "quick_gelu": ({**TINY_CLIP, "quick_gelu": True}, {"mean": None, "std": None}),
        "resnet": ({**TINY_CLIP, "vision_cfg": RESNET}, {"resize_mode": "longest", "fill_color": 127}),
        "siglip": (
            {**TINY_CLIP, "text_cfg": siglip, "vision_cfg": averaged, "custom_text": True, "init_logit_bias": -10},
            {**HALF, "resize_mode": "squash", "interpolation": "bicubic"},
        ),
        "clipa": (
            {**TINY_CLIP, "text_cfg": clipa, "vision_cfg": averaged},
            {**IMAGENET, "resize_mode": "squash", "interpolation": "bilinear"},
        ),
        "coca": (
            {**TINY_CLIP, "text_cfg": coca, "vision_cfg": pooled, "multimodal_cfg": CAPTION, "custom_text": True},
            {"mean": [0.0] * 3, "std": 0.5, "interpolation": "bilinear"},
        ),
    }


@pytest.fixture(scope="module")
def clip_folders(tmp_path_factory, bert_folder):
    """Every layout in open_clip's local-dir format, each with tokenizer files: SigLIP's own, else BERT's."""
    from transformers import BertTokenizer

    place = tmp_path_factory.mktemp("clips")
    layouts = clip_layouts(save_sentencepiece(place / "siglip"))
    for name, (config, preprocess) in layouts.items():
        if name != "siglip":
            BertTokenizer.from_pretrained(bert_folder).save_pretrained(place / name)
        save_clip_folder(place / name, config, preprocess)
    return {name: place / name for name in layouts}


@torch.no_grad()
def open_clips(identifier, images, **options):
    """What open_clip itself gives: unit embeddings of images and of :data:`TEXTS`."""
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(identifier, **options)
    seen = torch.cat([model.eval().encode_image(transform(image)[None]) for image in images])
    read = model.encode_text(open_clip.get_tokenizer(identifier)(TEXTS))
    return F.normalize(seen, dim=-1), F.normalize(read, dim=-1)


def assert_open_clips(clip, identifier, images, **options):
    wanted = open_clips(identifier, images, **options)
    seen = torch.cat([clip.embed_images(as_tensor(image)) for image in images])
    for got, reference in zip((seen, clip.embed_texts(TEXTS)), wanted, strict=True):
        assert reference.std(0).mean() > 1e-2, "embeddings that never differ would prove nothing"
        assert torch.allclose(got, reference, atol=TOLERANCE), float((got - reference).abs().max())


@pytest.mark.parametrize("name", list(clip_layouts(0)))
def test_clip_from_a_folder_equals_open_clip(clip_folders, name):
    folder = clip_folders[name]
    assert_open_clips(ClipScorer.from_pretrained(folder), f"local-dir:{folder}", every_image())


@pytest.mark.parametrize("name", ["clip", "siglip", "clipa"])
def test_clip_by_name_equals_open_clip(clip_folders, tmp_path, monkeypatch, name):
    import open_clip

    folder = clip_folders[name]
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    if name != "clip":  # in place of the hub's
        config["text_cfg"]["hf_tokenizer_name"] = str(folder)
    (tmp_path / f"named-{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    weights = str(folder / "open_clip_model.safetensors")
    clip = ClipScorer.from_pretrained(f"named-{name}", weights)
    assert_open_clips(clip, f"named-{name}", every_image(SIZES[:4]), pretrained=weights)


def test_a_text_that_does_not_fit_warns_once_whatever_the_tokenizer(clip_folders):
    clip = ClipScorer.from_pretrained(clip_folders["siglip"])
    with pytest.warns(UserWarning, match=r"a scorer reads 64 tokens and 'many words .* has more"):
        clip.embed_texts(TEXTS)


def pair(wanted: torch.Tensor, got: torch.Tensor) -> None:
    assert wanted.std() > 1e-3, "scores that never differ would prove nothing"
    assert torch.allclose(got, wanted, atol=TOLERANCE), float((got - wanted).abs().max())


class HpsTransform:
    """What hpsv2 1.2.0 does to an image (``image_transform`` with ``resize_longest_max``), written out."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image) -> torch.Tensor:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as T

        tensor = T.to_tensor(image.convert("RGB"))
        scale = self.size / float(max(tensor.shape[1:]))
        if scale != 1.0:
            height, width = (round(side * scale) for side in tensor.shape[1:])
            tensor = T.resize(tensor, [height, width], InterpolationMode.BICUBIC, antialias=True)
            down, across = self.size - height, self.size - width
            tensor = T.pad(tensor, [across // 2, down // 2, across - across // 2, down - down // 2], fill=0)
        return T.normalize(tensor, CLIP_MEAN, CLIP_STD)


@torch.no_grad()
def hps_pair(clip_folders, tmp_path, transform, model_class, tokenize):
    """Scores of the reference that is made of these three parts, and ours."""
    import open_clip
    from safetensors.torch import load_file

    (tmp_path / "reference-hps.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(tmp_path)
    state = load_file(clip_folders["clip"] / "open_clip_model.safetensors")
    torch.save({"state_dict": state}, tmp_path / "HPS_v2.1_compressed.pt")
    hps = HpsScorer.from_pretrained(tmp_path / "HPS_v2.1_compressed.pt", architecture="reference-hps")
    model = model_class(**TINY_CLIP).eval()
    model.load_state_dict(state)
    images = every_image()
    texts = [TEXTS[i % len(TEXTS)] for i in range(len(images))]
    seen = torch.cat([model.encode_image(transform(image)[None], normalize=True) for image in images])
    read = model.encode_text(tokenize(texts, context_length=16), normalize=True)
    got = torch.cat([hps.score(as_tensor(image), [text]) for image, text in zip(images, texts, strict=True)])
    return (seen * read).sum(1), got


def test_hps_equals_its_published_transform_and_cosine(clip_folders, tmp_path):
    import open_clip

    pair(*hps_pair(clip_folders, tmp_path, HpsTransform(32), open_clip.CLIP, open_clip.tokenize))


def test_hps_equals_its_package(clip_folders, tmp_path):
    """Runs where hpsv2 1.2.0 is: `pip install --no-deps hpsv2==1.2.0 clint args fairscale braceexpand webdataset`, and
    open_clip's bpe_simple_vocab_16e6.txt.gz copied into its src/open_clip, which the wheel lacks."""
    try:
        from hpsv2.src.open_clip import model, tokenizer, transform
    except (ImportError, FileNotFoundError) as error:
        pytest.skip(f"hpsv2 cannot be imported: {error}")
    own = transform.image_transform(32, is_train=False, resize_longest_max=True)
    pair(*hps_pair(clip_folders, tmp_path, own, model.CLIP, tokenizer.tokenize))


def test_aesthetic_equals_the_authors_recipe(clip_folders, tmp_path):
    state = random_weights(head_state((16, 12, 8, 8, 4, 1)), "", torch.Generator().manual_seed(2))
    torch.save(state, tmp_path / "head.pth")
    scorer = AestheticScorer.from_pretrained(
        tmp_path / "head.pth", clip=ClipScorer.from_pretrained(clip_folders["quick_gelu"])
    )
    images = every_image()
    wanted = open_clips(f"local-dir:{clip_folders['quick_gelu']}", images)[0]
    for position in (0, 2, 4, 6, 7):
        wanted = F.linear(wanted, state[f"layers.{position}.weight"], state[f"layers.{position}.bias"])
    pair(wanted[:, 0], torch.cat([scorer.score(as_tensor(image), ["any"]) for image in images]))


SAVED = {"image_mean": IMAGENET["mean"], "image_std": IMAGENET["std"], "resample": 3}
PROCESSORS = {
    "dinov2": {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}} | SAVED,
    "squash": {"image_processor_type": "ViTImageProcessor", "size": {"height": 28, "width": 28}},
    "no crop": {"size": {"shortest_edge": 56}, "do_center_crop": False},
    "no normalising": {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}, "do_normalize": False},
    "no resizing": {"do_resize": False, "crop_size": {"height": 84, "width": 84}},
    "no rescaling": {"do_rescale": False, "do_resize": False, "crop_size": {"height": 28, "width": 28}},
    "other scale": {"size": {"shortest_edge": 32}, "crop_size": 28, "rescale_factor": 1 / 127.5, "resample": 2},
    "legacy": {"size": 32, "crop_size": 28, "feature_extractor_type": "BitFeatureExtractor"},
}


@pytest.fixture(scope="module")
def dino_model():
    from transformers import Dinov2Config, Dinov2Model

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    return randomise(Dinov2Model(Dinov2Config(**shape, layerscale_value=0.3)))


@torch.no_grad()
def dino_pair(model, folder, settings, backend):
    from transformers import AutoImageProcessor

    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    images = every_image()
    processor = AutoImageProcessor.from_pretrained(folder, backend=backend)
    read = [processor(image, return_tensors="pt").pixel_values.float() for image in images]
    wanted = F.normalize(torch.cat([model(pixels).pooler_output for pixels in read]), dim=-1)
    dino = DinoEmbedder.from_pretrained(folder)
    return wanted, torch.cat([dino.embed_images(as_tensor(image)) for image in images])


@pytest.mark.parametrize("name", list(PROCESSORS))
def test_dino_equals_transformers(dino_model, tmp_path, name):
    # Images that are smaller than the crop get bars; transformers' two backends split an odd rest in two ways.
    backend = "torchvision" if name == "no resizing" else "pil"
    pair(*dino_pair(dino_model, tmp_path, PROCESSORS[name], backend))


@pytest.mark.parametrize(("name", "bound"), [("dinov2", 1e-5), ("squash", 1e-4), ("no rescaling", 1e-6)])
def test_dino_is_near_transformers_torchvision_backend(dino_model, tmp_path, name, bound):
    """torch resizes bytes with weights of 16 bits, bilinear ones in another order without AVX2: some pixels differ."""
    wanted, got = dino_pair(dino_model, tmp_path, PROCESSORS[name], "torchvision")
    assert (1 - (wanted * got).sum(1)).max() < bound


@torch.no_grad()
def test_image_reward_equals_its_published_recipe(image_reward_folder, image_reward_state, bert_folder):
    from torchvision import transforms as T
    from transformers import BertTokenizer

    tokenizer = BertTokenizer.from_pretrained(bert_folder)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_tokens(["[ENC]"], special_tokens=True)
    bicubic = T.InterpolationMode.BICUBIC
    published = T.Compose([T.Resize(32, bicubic), T.CenterCrop(32), T.ToTensor(), T.Normalize(CLIP_MEAN, CLIP_STD)])
    images = every_image()
    texts = [TEXTS[i % len(TEXTS)] for i in range(len(images))]
    scorer = ImageRewardScorer.from_pretrained(image_reward_folder, tokenizer=bert_folder)
    wanted, got = [], []
    for image, text in zip(images, texts, strict=True):
        ids = tokenizer(text, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
        pixels = published(image)[None]
        wanted.append(Written(image_reward_state).score(pixels, ids.input_ids, ids.attention_mask))
        got.append(scorer.score(as_tensor(image), [text]))
    pair(torch.cat(wanted), torch.cat(got))


@torch.no_grad()
def test_blip_preference_equals_transformers(emoji_weights, scorers):
    from torchvision import transforms as T
    from transformers import AutoTokenizer, BlipForImageTextRetrieval

    model = BlipForImageTextRetrieval.from_pretrained(emoji_weights / "image_reward").float().eval()
    tokenizer = AutoTokenizer.from_pretrained(emoji_weights / "tokenizer")
    bicubic = T.InterpolationMode.BICUBIC
    transform = T.Compose([T.Resize(64, bicubic), T.CenterCrop(64), T.ToTensor(), T.Normalize([0.5] * 3, [0.5] * 3)])
    images = every_image(SIZES[:6])
    wanted, got = [], []
    for image, text in zip(images, TEXTS, strict=False):
        ids = tokenizer([text], padding="max_length", max_length=32, truncation=True, return_tensors="pt").input_ids
        mask = (torch.cumsum(ids == tokenizer.eos_token_id, 1) <= 1).long()
        pixels = transform(image)[None]
        logits = model(input_ids=ids, pixel_values=pixels, attention_mask=mask, use_itm_head=True)[0]
        wanted.append((logits[:, 1] - logits[:, 0] - model.config.score_mean) / model.config.score_std)
        got.append(scorers.preference.matching.score(as_tensor(image), [text]))
    pair(torch.cat(wanted), torch.cat(got))


def test_sharpness_equals_scipys_mirrored_laplacian():
    ndimage = pytest.importorskip("scipy.ndimage")
    for image in every_image():
        grey = (np.array(image).astype(np.float64) * [0.299, 0.587, 0.114]).sum(2)
        wanted = ndimage.laplace(grey, mode="mirror").var()
        assert SharpnessScorer().score(as_tensor(image), ["any"]).item() == pytest.approx(wanted, rel=TOLERANCE)


@torch.no_grad()
def settle(model):
    """Gives batch normalisation the statistics of noise: with random weights and none, 50 layers end in infinity."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all that was seen: one batch
    side = Preprocess.from_open_clip(model.visual.preprocess_cfg).size
    model.train().encode_image(torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0)))
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["ViT-B-32", "ViT-B-32-quickgelu", "RN50", "coca_ViT-B-32", "MobileCLIP-S1", "PE-Core-T-16-384", "ViTamin-S"],
)
def test_clip_of_a_published_size_equals_open_clip(tmp_path, name):
    import open_clip

    weights = str(tmp_path / "weights.pt")
    torch.save(settle(randomise(open_clip.create_model(name))).state_dict(), weights)
    clip = ClipScorer.from_pretrained(name, weights)
    assert_open_clips(clip, name, every_image((*LARGE, (64, 65))), pretrained=weights)


@pytest.mark.parametrize(("channels", "kind"), [(1, "grey"), (2, "grey with alpha"), (4, "RGB with alpha")])
def test_grey_and_alpha_are_refused_with_what_to_do(channels, kind):
    with pytest.raises(ImageRangeError, match=rf"got \(1, {channels}, 8, 8\): {kind}"):
        SharpnessScorer().score(torch.zeros(1, channels, 8, 8), ["any"])
