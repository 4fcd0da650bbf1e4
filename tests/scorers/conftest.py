"""Tiny models with random weights in the true file formats, and images of the emoji world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scorer_models import MED_CONFIG, TINY_CLIP, head_state, images, random_weights, text_state, vision_state

from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers.emoji import emoji_scorers

HERE = Path(__file__).parent
EMOJI_WEIGHTS = HERE.parents[1] / "addiffusion_env" / "backbones" / "emoji" / "weights"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network and an empty hub cache; returns the cache's path."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def make_images():
    return images


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A folder in open_clip's local-dir format, with its wrapper and preprocessing; random weights."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    folder.mkdir()
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY_CLIP)
    config = {"model_cfg": TINY_CLIP, "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory):
    """A lower-case BERT tokenizer with a vocabulary of letters."""
    folder = tmp_path_factory.mktemp("bert")
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return folder


@pytest.fixture(scope="session")
def image_reward_state():
    """A state dict with ImageReward's own names, small; with the parts that scoring does not use."""
    generator = torch.Generator().manual_seed(1)
    state = random_weights(vision_state(), "blip.visual_encoder.", generator)
    state |= random_weights(text_state(), "blip.text_encoder.", generator)
    state |= random_weights(head_state(), "mlp.", generator)
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(64)[None]
    state["blip.vision_proj.weight"] = torch.zeros(8, 128)
    return state


@pytest.fixture(scope="session")
def image_reward_folder(tmp_path_factory, image_reward_state):
    """``ImageReward.pt`` and ``med_config.json`` of the small model."""
    folder = tmp_path_factory.mktemp("image_reward")
    torch.save(image_reward_state, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(MED_CONFIG))
    return folder


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory):
    """A Dinov2 folder with a ``preprocessor_config.json``; random weights."""
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dino") / "tiny-dino"
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    Dinov2Model(Dinov2Config(**shape)).save_pretrained(folder)
    settings = {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 28, "width": 28},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def emoji_weights():
    """The weights that come with the package."""
    if not (EMOJI_WEIGHTS / "clip").is_dir():
        pytest.skip(f"no emoji weights in {EMOJI_WEIGHTS}")
    return EMOJI_WEIGHTS


@pytest.fixture(scope="session")
def scorers(emoji_weights):
    return emoji_scorers(emoji_weights)


@pytest.fixture(scope="session")
def pairs():
    """24 rendered scenes, each with a twin that contradicts it in one thing (a relation, colour, count or class).

    Returns:
        images: (24, 2, 3, 64, 64) in [-1, 1].
        prompts: 24 pairs of prompts, one for each image.
    """
    with np.load(HERE / "emoji_pairs.npz") as data:
        images = torch.tensor(data["images"]).float() / 127.5 - 1
        return images, [[Prompt.of(str(text)) for text in pair] for pair in data["prompts"]]
