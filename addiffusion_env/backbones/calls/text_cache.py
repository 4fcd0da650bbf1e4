"""A cache of encoded prompts that is valid as long as the text encoders are unchanged."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from addiffusion_env.backbones.calls.guards import autocast_state
from addiffusion_env.backbones.calls.joining import Digests
from addiffusion_env.backbones.fingerprint import LruCache, adapters_in, sampled
from addiffusion_env.backbones.memory import alone

TEXTS_KEPT = 1024
"""Maximum number of cached results of ``encode_prompt``."""


class TextCache:
    """Results of a pipeline's ``encode_prompt``, by its arguments, the state of its text encoders, and autocast.

    Args:
        pipe: the pipeline.
        digests: hashes arguments into keys.
    """

    def __init__(self, pipe: Any, digests: Digests) -> None:
        self.pipe, self.digests = pipe, digests
        self._texts: LruCache[Any] = LruCache(TEXTS_KEPT)
        self._state: Any = None

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Context manager in which the text encoders stay as they are: their state is computed once, not per image."""
        self._state = encoder_state(self.pipe)
        try:
            yield
        finally:
            self._state = None

    def overrides(self) -> dict[str, Any]:
        """Attributes of a copy of the pipeline that encodes through this cache."""
        encode = getattr(self.pipe, "encode_prompt", None)
        return {} if encode is None else {"encode_prompt": self._cached(encode)}

    def _cached(self, encode: Any) -> Any:
        @functools.wraps(encode)
        def encoded(*args: Any, **kwargs: Any) -> Any:
            state = encoder_state(self.pipe) if self._state is None else self._state
            key = (state, autocast_state(), self.digests((args, kwargs)))
            if (known := self._texts.get(key)) is not None:
                return known[0]
            with alone(self.pipe):
                found = encode(*args, **kwargs)
            # The arguments stay alive with their result: some are known by their id.
            self._texts[key] = (found, args, kwargs)
            return found

        return encoded


def encoder_state(pipe: Any) -> Any:
    """The state that encoded prompts depend on: weights, adapters and tokens of the text encoders."""
    return sampled(*(part for name, part in vars(pipe).items() if name.startswith(("text_encoder", "tokenizer"))))


def adapters_of(pipe: Any) -> tuple[Any, ...]:
    """The state of the adapters of all networks of a pipeline."""
    parts = pipe.__dict__.items()
    adapted = ((name, part) for name, part in parts if isinstance(part, torch.nn.Module))
    return tuple((name, adapters_in(part)) for name, part in adapted if "peft_config" in part.__dict__)
