"""A vision-language model as pairwise judge, through any service that speaks OpenAI's protocol."""

from __future__ import annotations

from typing import Any

from addiffusion_env.errors import ConfigError, unknown
from addiffusion_lab.vlm.client import SERVICES, VlmClient

__all__ = ["SERVICES", "make_client"]


def make_client(spec: str, **options: Any) -> VlmClient:
    """The client that ``"service:model"`` names, for example ``"openai:gpt-4o-2024-11-20"``.

    Args:
        spec: service of ``SERVICES`` and pinned model name.
        **options: see :class:`addiffusion_lab.vlm.client.VlmClient`.

    Raises:
        UnknownNameError: for a service that is not in ``SERVICES``.
        ConfigError: for a spec without a model, a model that is not pinned, or a missing key.
        MissingPackageError: when the package openai is not installed.
    """
    name, _, model = spec.partition(":")
    if name not in SERVICES:
        raise unknown("VLM service", name, SERVICES)
    if not model:
        example = SERVICES[name].example
        raise ConfigError(f"judge {spec!r} names no model", f"write service:model, for example {name}:{example}")
    return VlmClient(SERVICES[name], model, **options)
