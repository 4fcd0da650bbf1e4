"""One (prompt id, seed) -> named, independent streams of noise, the same in any lane, batch, worker and device.

Noise is always drawn on the CPU from a generator keyed by a hash, and then moved: an image is a function of its
prompt, its seed and the actions taken, never of its place in a batch or of what was drawn before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


def stable_hash(*parts: object) -> int:
    """A 63-bit hash of ``parts`` that is the same in every process and on every machine (Python's own is salted)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def keyed_generator(prompt_id: str, seed: int, stream: str = "initial") -> torch.Generator:
    """The CPU generator of one stream of one image.

    Args:
        prompt_id: identity of the prompt, for example ``"emoji-4f1c..."``.
        seed: the image's seed; the same prompt with another seed is another image.
        stream: what the noise is for: ``"initial"``, ``"refine-0"``, ``"refine-1"`` ...
    """
    generator = torch.Generator(device="cpu")
    generator.manual_seed(stable_hash("addiffusion", prompt_id, int(seed), stream))
    return generator


def keyed_noise(prompt_id: str, seed: int, shape: Sequence[int], stream: str = "initial") -> torch.Tensor:
    """Standard normal noise of ``shape`` (C, H, W) for one image; float32 on the CPU.

    The same on every processor to 1e-6: torch's logarithms and cosines differ in their last digit by instruction set.

    >>> a, b = keyed_noise("p", 0, (4, 2, 2)), keyed_noise("p", 0, (4, 2, 2))
    >>> bool((a == b).all()), bool((a == keyed_noise("p", 1, (4, 2, 2))).any())
    (True, False)
    """
    return torch.randn(tuple(shape), generator=keyed_generator(prompt_id, seed, stream), dtype=torch.float32)
