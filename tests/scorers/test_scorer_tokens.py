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
)


def bert(folder):
    from transformers import BertTokenizer

    return load_transformers_tokenizer(folder, BertTokenizer.from_pretrained)


TEXTS = ["a dog", "a photo of a red cup above a blue book", "", "word " * 100]


@pytest.mark.filterwarnings("ignore:a scorer reads")
def test_open_clip_ids_are_open_clips_own():
    import open_clip

    own = open_clip.SimpleTokenizer(context_length=77)
    assert torch.equal(Tokenizer(own, 77)(TEXTS), own(TEXTS))


@pytest.mark.filterwarnings("ignore:a scorer reads")
def test_bert_ids_are_transformers_own(bert_folder):
    from transformers import BertTokenizer

    own = load_transformers_tokenizer(bert_folder, BertTokenizer.from_pretrained)
    wanted = own(TEXTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    tokenizer = Tokenizer(own, 35)
    assert torch.equal(tokenizer(TEXTS), wanted.input_ids)
    ids, mask = tokenizer.trimmed(TEXTS)
    assert torch.equal(mask, wanted.attention_mask)
    assert torch.equal(ids, wanted.input_ids)


def test_trimmed_pads_to_the_longest_only(bert_folder):
    tokenizer = Tokenizer(bert(bert_folder), 35)
    ids, mask = tokenizer.trimmed(["a", "a b c"])
    assert ids.shape == (2, 5) and mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize("library", ["open_clip", "transformers"])
def test_a_long_text_keeps_its_end_token_and_warns_once(bert_folder, library):
    import open_clip

    own = bert(bert_folder) if library == "transformers" else open_clip.SimpleTokenizer()
    tokenizer = Tokenizer(own, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short = tokenizer(["a b c d"])[0]
    with pytest.warns(UserWarning, match="reads 6 tokens and 'a b c d e'.* has more"):
        long = tokenizer(["a b c d e"])[0]
    assert torch.equal(long, short) and len(long) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer(["a b c d e f"])


def test_emoji_texts_end_in_the_token_that_also_pads(emoji_weights):
    own = load_transformers_tokenizer(emoji_weights / "tokenizer")
    text = "a photo of two red dogs"
    wanted = own([text], padding="max_length", max_length=32, return_tensors="pt").input_ids
    tokenizer = Tokenizer(own, 32)
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
        ({"vocab_size": 916}, "no tokenizer in .* and its vocabulary of 916 is not open_clip"),
        ({"tokenizer_kwargs": {"clean": "scrub"}}, r"SimpleTokenizer fails with .*Invalid clean function"),
    ],
)
def test_a_tokenizer_that_cannot_be_had_is_named(tmp_path, text, message):
    with pytest.raises(WeightsError, match=message):
        choose_tokenizer(None, {"text_cfg": text}, tmp_path / "model")
