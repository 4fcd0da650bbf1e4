"""A vision-language model as pairwise judge. Listing the clients imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from addiffusion_env.errors import ConfigError
from addiffusion_env.registry import Registry

if TYPE_CHECKING:
    from addiffusion_lab.vlm.client import VlmClient

CLIENTS = Registry(
    "VLM service",
    {
        "openai": "addiffusion_lab.vlm.openai_client:OpenAIClient",
        "gemini": "addiffusion_lab.vlm.gemini_client:GeminiClient",
    },
)
"""Name -> class. ``openai`` speaks to any OpenAI-compatible server by its ``base_url``."""


def make_client(spec: str, **options: Any) -> VlmClient:
    """The client that ``"service:model"`` names, for example ``"openai:gpt-4o-2024-11-20"``.

    Args:
        spec: service of ``CLIENTS`` and pinned model name.
        **options: see :class:`addiffusion_lab.vlm.client.VlmClient`.

    Raises:
        UnknownNameError: for a service that is not in ``CLIENTS``.
        ConfigError: for a spec without a model, a model that is not pinned, or a missing key.
        MissingPackageError: when the service's package is not installed.
    """
    service, _, model = spec.partition(":")
    kind = CLIENTS.load(service)
    if not model:
        raise ConfigError(
            f"judge {spec!r} names no model", f"write service:model, for example {service}:{kind.example}"
        )
    client: VlmClient = kind(model, **options)
    return client
