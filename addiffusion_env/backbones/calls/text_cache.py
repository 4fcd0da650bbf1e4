"""Encoded prompts, kept as long as nothing that encodes them changes."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

import torch

from addiffusion_env.backbones.calls.joining import Digests
from addiffusion_env.backbones.memory import alone

TEXTS_KEPT = 1024
"""Most results of ``encode_prompt`` kept."""

VALUES_READ = 8
"""Values of each parameter that are compared."""


class TextCache:
    """Results of a pipeline's ``encode_prompt``, by its arguments and the state of its text encoders.

    Args:
        pipe: the pipeline.
        digests: makes keys of arguments.
    """

    def __init__(self, pipe: Any, digests: Digests) -> None:
        self.pipe, self.digests = pipe, digests
        self._texts: OrderedDict[Any, Any] = OrderedDict()
        self._values = encoder_values(pipe)

    def refresh(self) -> None:
        """Forgets all texts when weights of an encoder have other values than before.

        ``parameter.data`` is written to without a trace in torch's counts of changes; optimisers and adapters that are
        fused do so.
        """
        values = encoder_values(self.pipe)
        if values != self._values:
            self._texts.clear()
            self._values = values

    def overrides(self) -> dict[str, Any]:
        """Attributes of a copy of the pipeline that encodes through this cache."""
        encode = getattr(self.pipe, "encode_prompt", None)
        return {} if encode is None else {"encode_prompt": self._cached(encode)}

    def _cached(self, encode: Any) -> Any:
        @functools.wraps(encode)
        def encoded(*args: Any, **kwargs: Any) -> Any:
            key = (encoder_state(self.pipe), self.digests((args, kwargs)))
            if key in self._texts:
                self._texts.move_to_end(key)
                return self._texts[key][0]
            with alone(self.pipe):
                found = encode(*args, **kwargs)
            # The arguments stay alive with their result: some are known by their id.
            self._texts[key] = (found, args, kwargs)
            while len(self._texts) > TEXTS_KEPT:
                self._texts.popitem(last=False)
            return found

        return encoded


def version_of(value: torch.Tensor) -> int:
    """How often a tensor was changed in place; inference tensors keep no count."""
    return 0 if value.is_inference() else value._version


def encoders(pipe: Any) -> list[torch.nn.Module]:
    """The text encoders of a pipeline."""
    return [
        part
        for name, part in pipe.__dict__.items()
        if name.startswith("text_encoder") and isinstance(part, torch.nn.Module)
    ]


def encoder_state(pipe: Any) -> Any:
    """Changes when a text encoder's weights, adapters or tokens do: what encoded prompts depend on."""
    found: list[Any] = []
    for part in encoders(pipe):
        found.append((id(part), sum((version_of(p) + 1) * (p.data_ptr() % 1000003 + 7) for p in part.parameters())))
        found.append(adapter_state(part))
    for name, part in pipe.__dict__.items():
        if name.startswith("tokenizer") and hasattr(part, "__len__"):
            found.append((id(part), len(part)))
    return tuple(found)


def encoder_values(pipe: Any) -> list[float]:
    """A few values of each parameter of the text encoders, the last ones among them: added tokens are there."""
    found = []
    for part in encoders(pipe):
        for parameter in part.parameters():
            values = parameter.detach()
            if type(values) is torch.Tensor and not values.is_meta and values.numel():
                flat = values.reshape(-1)
                found += [flat[:: max(1, len(flat) // VALUES_READ)].float(), flat[-VALUES_READ:].float()]
    return torch.cat([values.cpu() for values in found]).tolist() if found else []


def adapters_of(pipe: Any) -> tuple[Any, ...]:
    """The state of the adapters of all networks of a pipeline."""
    parts = pipe.__dict__.items()
    return tuple((name, adapter_state(part)) for name, part in parts if isinstance(part, torch.nn.Module))


def adapter_state(module: torch.nn.Module) -> Any:
    """What of a network's adapters (peft) takes effect: their names, weights, and whether they are merged."""
    if "peft_config" not in module.__dict__:
        return None
    found = []
    for layer in module.modules():
        if isinstance(scaling := getattr(layer, "scaling", None), dict):
            # A scale that is set for one call and taken back leaves rounding.
            weights = tuple((name, round(float(weight), 5)) for name, weight in scaling.items())
            names = getattr(layer, "active_adapters", ()), getattr(layer, "merged_adapters", ())
            found.append((weights, *(tuple(entry) for entry in names), getattr(layer, "disable_adapters", False)))
    return tuple(found)
