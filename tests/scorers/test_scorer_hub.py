"""Loading: what is missing, foreign or broken is named, and nothing is filled with random numbers."""

from __future__ import annotations

import json
import os
import socket

import pytest
import torch
from torch import nn

from addiffusion_env import scorers
from addiffusion_env.errors import WeightsError
from addiffusion_env.scorers.clip import ClipScorer
from addiffusion_env.scorers.dino import DinoEmbedder
from addiffusion_env.scorers.hps import HpsScorer
from addiffusion_env.scorers.image_reward import ImageRewardScorer


@pytest.mark.parametrize(
    ("load", "command"),
    [
        (
            lambda bert: ImageRewardScorer.from_pretrained(tokenizer=bert),
            "hf download THUDM/ImageReward ImageReward.pt",
        ),
        (lambda bert: HpsScorer.from_pretrained(), "hf download xswu/HPSv2 HPS_v2.1_compressed.pt"),
        (lambda bert: DinoEmbedder.from_pretrained(), "hf download facebook/dinov2-small"),
    ],
)
def test_offline_names_the_cache_the_command_and_what_works(offline, bert_folder, load, command):
    with pytest.raises(WeightsError) as caught:
        load(bert_folder)
    message = str(caught.value)
    assert command in message
    assert str(offline) in message
    assert "AdDiffusion-Emoji-v2" in message


def test_an_open_clip_tag_that_cannot_be_fetched_names_its_repository(monkeypatch):
    import open_clip

    def no_network(*args, **kwargs):
        raise RuntimeError("Failed to download weights for tag 'openai'") from socket.gaierror("no such host")

    monkeypatch.setattr(open_clip, "create_model", no_network)  # else ViT-L/14 would be built or downloaded here
    with pytest.raises(WeightsError, match=r"hf download timm/vit_large_patch14_clip_224\.openai") as caught:
        ClipScorer.from_pretrained("ViT-L-14", "openai")
    assert "cannot be fetched: HF_HUB_OFFLINE is set" in caught.value.cause


def test_a_path_that_is_not_there_is_not_asked_of_the_hub(offline, tmp_path):
    for load in (ClipScorer.from_pretrained, DinoEmbedder.from_pretrained, ImageRewardScorer.from_pretrained):
        with pytest.raises(WeightsError, match="no such"):
            load(str(tmp_path / "absent"))


def test_a_truncated_file_is_named(tmp_path):
    for name in ("weights.safetensors", "weights.pt"):
        (tmp_path / name).write_bytes(b"\x00" * 40)
        with pytest.raises(WeightsError, match=name) as caught:
            scorers.read_state_dict(tmp_path / name)
        assert f"copy {tmp_path / name} again" in caught.value.remedy


def test_a_truncated_download_names_the_command_that_fetches_it(tmp_path):
    path = tmp_path / "models--THUDM--ImageReward" / "snapshots" / "abc" / "ImageReward.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x00" * 40)
    with pytest.raises(WeightsError, match=r"hf download THUDM/ImageReward ImageReward\.pt --force-download"):
        scorers.read_state_dict(path)


def test_a_torch_file_is_not_executed(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"weight": Payload()}, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match="cannot read"):
        scorers.read_state_dict(tmp_path / "weights.pt")
    assert not (tmp_path / "executed").exists()


def test_a_file_without_tensors_is_refused(tmp_path):
    torch.save({"step": 3}, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match="no state dict"):
        scorers.read_state_dict(tmp_path / "weights.pt")


def test_load_strict_names_what_is_missing_foreign_and_misshapen():
    module = nn.Linear(3, 2)
    with pytest.raises(WeightsError) as caught:
        scorers.load_strict(module, {"weight": torch.zeros(2, 4), "extra": torch.zeros(1)}, "file.pt")
    message = str(caught.value)
    for part in ("file.pt", "missing: bias", "unexpected: extra", "weight (2, 4) instead of (2, 3)"):
        assert part in message
    state = {"weight": torch.ones(2, 3), "bias": torch.ones(2), "ids": torch.zeros(1)}
    scorers.load_strict(module, state, "file.pt", ignore=lambda name: name == "ids")
    assert module.weight.eq(1).all()


def test_transformers_folder_with_weights_missing_is_not_filled_with_random_ones(tmp_path, dino_folder):
    from safetensors.torch import load_file, save_file

    state = load_file(dino_folder / "model.safetensors")
    key = next(name for name in state if "layer.1" in name and name.endswith("weight"))
    del state[key]
    (tmp_path / "config.json").write_text((dino_folder / "config.json").read_text())
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="lacks weights of Dinov2Model"):
        DinoEmbedder.from_pretrained(tmp_path)


def test_transformers_folder_of_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(WeightsError, match="type 'clip', expected 'dinov2'"):
        DinoEmbedder.from_pretrained(tmp_path)
