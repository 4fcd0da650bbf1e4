"""Keyed noise: (prompt id, seed) determines named, independent random streams, in any lane, batch, worker and device.

Noise is always drawn on the CPU from a generator seeded by a hash, and then moved to the device: an image is a function
of its prompt, its seed and the actions taken, not of its position in a batch or of earlier draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def stable_hash(*parts: object) -> int:
    """A 63-bit hash of ``parts`` that is the same in every process and on every machine (Python's hash is salted)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def keyed_generator(prompt_id: str, seed: int, stream: str = "initial") -> torch.Generator:
    """The CPU generator of one stream of one image.

    Args:
        prompt_id: id of the prompt, for example ``"emoji-4f1c..."``.
        seed: the image's seed.
        stream: name of the stream: ``"initial"``, ``"refine-0"``, ``"refine-1"`` ...
    """
    import torch  # here, so that prompts and registries load without it

    generator = torch.Generator(device="cpu")
    generator.manual_seed(stable_hash("addiffusion", prompt_id, int(seed), stream))
    return generator


def keyed_noise(prompt_id: str, seed: int, shape: Sequence[int], stream: str = "initial") -> torch.Tensor:
    """Standard normal noise of ``shape`` (C, H, W) for one image; float32 on the CPU.

    It is the same on every processor to 1e-6: torch's logarithms and cosines depend on the instruction set in the last
    digit.

    >>> a, b = keyed_noise("p", 0, (4, 2, 2)), keyed_noise("p", 0, (4, 2, 2))
    >>> bool((a == b).all()), bool((a == keyed_noise("p", 1, (4, 2, 2))).any())
    (True, False)
    """
    import torch

    return torch.randn(tuple(shape), generator=keyed_generator(prompt_id, seed, stream), dtype=torch.float32)
