"""What all scorers share: pairing, chunks, refusal of NaN, a bounded memory of texts."""

from __future__ import annotations

import pytest
import torch

from addiffusion_env.backbones.fingerprint import LruCache
from addiffusion_env.errors import ConfigError, ImageRangeError, NumericsError, PromptError
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers import check_pairs, in_chunks, require_finite


@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_chunks_are_joined_in_order(size):
    seen = []

    def double(values, names):
        seen.append(list(names))
        assert not torch.is_grad_enabled()
        return (2 * values).half()

    values = torch.arange(5.0, requires_grad=True)
    joined = in_chunks(double, values, list("abcde"), size=size)
    assert joined.tolist() == [0, 2, 4, 6, 8]
    assert joined.dtype == torch.float32
    assert not joined.requires_grad
    assert [name for part in seen for name in part] == list("abcde")
    assert max(map(len, seen)) <= size


def test_an_empty_batch_gives_no_rows():
    assert in_chunks(lambda values: values, torch.zeros(0, 3), width=(7,)).shape == (0, 7)


def test_a_chunk_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        in_chunks(lambda values: values, torch.zeros(2), size=0)


@pytest.mark.parametrize(
    ("images", "prompts", "error", "message"),
    [
        (torch.zeros(2, 3, 8, 8), ["a"], PromptError, "2 images but 1 prompts"),
        (torch.zeros(1, 3, 8, 8), "a", PromptError, "must be a sequence"),
        (torch.zeros(1, 3, 8, 8), [7], PromptError, "string or a Prompt, got int"),
        (torch.zeros(3, 8, 8), ["a"] * 3, ImageRangeError, r"\(B, 3, H, W\), got \(3, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8).byte(), ["a"], ImageRangeError, "uint8"),
        (torch.full((1, 3, 8, 8), 255.0), ["a"], ImageRangeError, "255"),
        (torch.full((1, 3, 8, 8), torch.nan), ["a"], ImageRangeError, "nan"),
    ],
)
def test_bad_inputs_are_refused(images, prompts, error, message):
    with pytest.raises(error, match=message):
        check_pairs(images, prompts)


def test_pairs_give_the_texts():
    assert check_pairs(torch.zeros(2, 3, 8, 8), [Prompt.of("a dog"), "a cat"]) == ["a dog", "a cat"]


def test_the_first_row_that_is_not_finite_is_named():
    values = torch.tensor([[0.0, 1.0], [torch.inf, 0.0], [0.0, torch.nan]])
    with pytest.raises(NumericsError, match=r"clip .* 2 of 3 images, first for 'a cat'"):
        require_finite(values, "clip", ["a dog", "a cat", "a cow"])
    assert require_finite(values[:1], "clip", ["a dog"]).shape == (1, 2)


def test_the_memory_is_bounded():
    memory = LruCache(3)
    for number in range(100):
        memory[str(number)] = number
    assert len(memory) == 3
    assert memory.get("99") == 99
    assert memory.get("0") is None
