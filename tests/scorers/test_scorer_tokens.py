"""Tokenisers: equal to the libraries' own, truncation keeps the end token, one warning."""

from __future__ import annotations

import warnings

import pytest
import torch

from addiffusion_env.errors import WeightsError
from addiffusion_env.scorers.tokens import (
    Tokenizer,
    choose_tokenizer,
    load_transformers_tokenizer,
    wrap_open_clip,
    wrap_transformers,
)

TEXTS = ["a dog", "a photo of a red cup above a blue book", "", "word " * 100]


@pytest.mark.filterwarnings("ignore:a scorer reads")
def test_open_clip_ids_are_open_clips_own():
    import open_clip

    own = open_clip.SimpleTokenizer(context_length=77)
    assert torch.equal(wrap_open_clip(own, 77)(TEXTS), own(TEXTS))


@pytest.mark.filterwarnings("ignore:a scorer reads")
def test_bert_ids_are_transformers_own(bert_folder):
    from transformers import BertTokenizer

    own = load_transformers_tokenizer(bert_folder, BertTokenizer)
    wanted = own(TEXTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    tokenizer = wrap_transformers(own, 35)
    assert torch.equal(tokenizer(TEXTS), wanted.input_ids)
    ids, mask = tokenizer.trimmed(TEXTS)
    assert torch.equal(mask, wanted.attention_mask)
    assert torch.equal(ids, wanted.input_ids)


def spelled(length=6):
    """Ids 1 ... 9 for start, digits and end; 0 pads."""
    return Tokenizer(lambda text: [8, *map(int, text), 9], length, 0)


def test_trimmed_pads_to_the_longest_only():
    ids, mask = spelled().trimmed(["1", "123"])
    assert ids.tolist() == [[8, 1, 9, 0, 0], [8, 1, 2, 3, 9]]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_a_long_text_keeps_its_end_token_and_warns_once():
    tokenizer = spelled()
    with pytest.warns(UserWarning, match="reads 6 tokens and '1234567'.* has 9"):
        assert tokenizer(["1234567"]).tolist() == [[8, 1, 2, 3, 4, 9]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tokenizer(["7654321"]).tolist() == [[8, 7, 6, 5, 4, 9]]


def test_emoji_texts_end_in_the_token_that_also_pads(emoji_weights):
    own = load_transformers_tokenizer(emoji_weights / "tokenizer")
    text = "a photo of two red dogs"
    wanted = own([text], padding="max_length", max_length=32, return_tensors="pt").input_ids
    tokenizer = wrap_transformers(own, 32)
    assert torch.equal(tokenizer([text]), wanted)
    ids, mask = tokenizer.trimmed([text, "a dog"])
    # The mask that the scorer was trained with: everything up to the first end token.
    assert torch.equal(mask, (torch.cumsum(ids == own.eos_token_id, 1) <= 1).long())


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="holds no tokenizer"):
        load_transformers_tokenizer(tmp_path)


def test_another_vocabulary_than_open_clips_keeps_the_folders_tokenizer_as_it_is(emoji_weights):
    own = load_transformers_tokenizer(emoji_weights / "tokenizer")
    chosen = choose_tokenizer(None, {"text_cfg": {"vocab_size": 916, "context_length": 32}}, emoji_weights / "clip")
    text = "fish &amp; chips: a photo of two red dogs"
    assert chosen([text])[0].tolist() == own([text], padding="max_length", max_length=32).input_ids[0]


def test_open_clips_vocabulary_takes_open_clips_tokenizer_whatever_lies_in_the_folder(bert_folder):
    import open_clip

    chosen = choose_tokenizer(None, {"text_cfg": {"vocab_size": 49408, "context_length": 20}}, bert_folder)
    assert torch.equal(chosen(["fish &amp; chips"]), open_clip.SimpleTokenizer(context_length=20)(["fish & chips"]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}, "no tokenizer in .* and its config names timm/ViT-B-16-SigLIP"),
        ({"vocab_size": 916}, "no tokenizer in .* and its vocabulary of 916 is its own"),
        ({"tokenizer_kwargs": {"clean": "scrub"}}, r"SimpleTokenizer cannot be made with .*Invalid clean function"),
    ],
)
def test_a_tokenizer_that_cannot_be_had_is_named(tmp_path, text, message):
    with pytest.raises(WeightsError, match=message):
        choose_tokenizer(None, {"text_cfg": text}, tmp_path / "model")
