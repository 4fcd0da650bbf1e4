"""The emoji world's preference scorer: transformers' own forward pass, trimmed padding, the ranking it was made for."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from addiffusion_env.errors import NumericsError, WeightsError
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers.emoji import BlipPreferenceScorer


@pytest.fixture(scope="module")
def matching(scorers):
    return scorers.preference.matching


@torch.no_grad()
def test_equals_transformers_own_forward_with_full_padding(emoji_weights, matching, pairs):
    from transformers import AutoTokenizer, BlipForImageTextRetrieval

    images, prompts = pairs[0][:8, 0], [pair[0] for pair in pairs[1][:8]]
    model = BlipForImageTextRetrieval.from_pretrained(emoji_weights / "image_reward").float().eval()
    tokenizer = AutoTokenizer.from_pretrained(emoji_weights / "tokenizer")
    texts = [prompt.text for prompt in prompts]
    ids = tokenizer(texts, padding="max_length", max_length=32, truncation=True, return_tensors="pt").input_ids
    mask = (torch.cumsum(ids == tokenizer.eos_token_id, 1) <= 1).long()
    logits = model(input_ids=ids, pixel_values=images, attention_mask=mask, use_itm_head=True)[0]
    wanted = (logits[:, 1] - logits[:, 0] - model.config.score_mean) / model.config.score_std
    assert torch.allclose(matching.score(images, prompts), wanted, atol=1e-5)


@pytest.mark.numeric
def test_a_score_depends_on_neither_neighbours_nor_chunks(matching, pairs):
    scorer = matching
    images, prompts = pairs[0][:6, 0], [pair[0] for pair in pairs[1][:6]]
    whole = scorer.score(images, prompts)
    alone = torch.cat([scorer.score(images[i : i + 1], prompts[i : i + 1]) for i in range(6)])
    assert torch.allclose(whole, alone, atol=1e-4)
    chunked = BlipPreferenceScorer(scorer.encoder, scorer.head, scorer.mean, scorer.std, "chunked", chunk=4)
    assert torch.allclose(chunked.score(images, prompts), whole, atol=1e-4)


def test_the_matching_image_wins_and_the_matching_prompt_wins(matching, pairs):
    images, prompts = pairs
    scores = torch.stack(
        [
            torch.stack([matching.score(images[:, i], [pair[j] for pair in prompts]) for j in range(2)], dim=1)
            for i in range(2)
        ],
        dim=1,
    )  # (scene, image, prompt)
    right = scores.diagonal(dim1=1, dim2=2)
    assert (right > scores.flip(1).diagonal(dim1=1, dim2=2)).float().mean() > 0.9  # another image, same prompt
    assert (right > scores.flip(2).diagonal(dim1=1, dim2=2)).float().mean() > 0.9  # another prompt, same image
    assert right.mean() > 0.5 > -0.5 > scores.flip(2).diagonal(dim1=1, dim2=2).mean()


def test_a_blurred_image_scores_less(matching, pairs):
    images, prompts = pairs[0][:, 0], [pair[0] for pair in pairs[1]]
    small = torch.nn.functional.interpolate(images, scale_factor=0.25, mode="area")
    blurred = torch.nn.functional.interpolate(small, size=64, mode="bilinear")
    assert (matching.score(images, prompts) > matching.score(blurred, prompts)).float().mean() > 0.9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_inside(emoji_weights, matching, pairs, dtype):
    half = BlipPreferenceScorer.from_pretrained(emoji_weights / "image_reward", dtype=dtype)
    images, prompts = pairs[0][:4, 0], [pair[0] for pair in pairs[1][:4]]
    scores = half.score(images, prompts)
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, matching.score(images, prompts), atol=0.15)


def test_nan_weights_are_named(emoji_weights, pairs):
    scorer = BlipPreferenceScorer.from_pretrained(emoji_weights / "image_reward")
    scorer.head.weight.data.fill_(torch.nan)
    with pytest.raises(NumericsError, match=r"blip_preference .*'a dog'"):
        scorer.score(pairs[0][:1, 0], [Prompt.of("a dog")])


def test_a_matching_model_without_a_scale_is_refused(emoji_weights, tmp_path):
    folder = tmp_path / "scaleless"
    shutil.copytree(emoji_weights / "image_reward", folder)
    config = json.loads((folder / "config.json").read_text())
    del config["score_std"]
    (folder / "config.json").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="score_std=None"):
        BlipPreferenceScorer.from_pretrained(folder, tokenizer=emoji_weights / "tokenizer")


def test_a_tokenizer_of_another_model_is_refused(emoji_weights, tmp_path, bert_folder):
    folder = tmp_path / "alone"
    shutil.copytree(emoji_weights / "image_reward", folder)
    with pytest.raises(WeightsError, match="no tokenizer in"):
        BlipPreferenceScorer.from_pretrained(folder)
