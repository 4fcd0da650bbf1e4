"""Client of OpenAI's chat completions: a question of texts and images in, a reply out, with classified failures."""

from __future__ import annotations

import base64
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from addiffusion_env.errors import ConfigError, MissingPackageError
from addiffusion_lab.vlm.retries import AttemptError, retry_after

Part: TypeAlias = "str | bytes"
"""A text, or a PNG file."""

HIDDEN = "[key]"
_FILTERED = ("content_filter", "content_policy_violation")  # the image was refused, not the account
_REASONING = re.compile(r"o\d|gpt-5")


@dataclass(frozen=True)
class Reply:
    """Reply of a service.

    Attributes:
        text: text of the reply; empty when it refused to answer.
        input_tokens: number reported by the service, images included; 0 if not reported.
        output_tokens: number reported by the service, reasoning included; 0 if not reported.
        model: the model that answered, as reported by the service.
        refusal: the service's reason when there is no text; empty otherwise.
    """

    text: str
    input_tokens: int
    output_tokens: int
    model: str
    refusal: str = ""


class VlmClient:
    """One model of one service. Safe to use from several threads.

    Keys come from environment variables only, so that no configuration, manifest or log can contain one. The variable
    that is read by default is never sent to another ``base_url``. The SDK's own retries are off: every attempt has to
    pass the cost limit of :class:`~addiffusion_lab.vlm.costs.Ledger`.

    Args:
        service: one of :data:`~addiffusion_lab.vlm.client.SERVICES`.
        model: a name that stays with one set of weights.
        base_url: base URL of another server with the same protocol; ``None``: the service's.
        key_variable: environment variable that holds the key; ``None``: the service's usual ones, or no key for your
            own server.
        timeout: seconds without an answer after which an attempt counts as failed.
        max_output_tokens: longest reply, reasoning included; bounds the cost of a call. ``None``: the service's
            default.
        reasoning_effort: reasoning effort of the model (``"none"``, ``"low"``, ``"medium"``, ``"high"``);
            ``None``: the model's default.

    Attributes:
        identity: service, host (if not the service's) and model: identifies the judge in results and cache keys.
        settings: other values that may change a reply: temperature, longest reply, path of another server, effort.

    Raises:
        ConfigError: for a model that is not pinned, or a missing key.
        MissingPackageError: when the package openai is not installed.
    """

    def __init__(
        self,
        service: Service,
        model: str,
        *,
        base_url: str | None = None,
        key_variable: str | None = None,
        timeout: float = 60.0,
        max_output_tokens: int | None = None,
        reasoning_effort: str | None = None,
    ) -> None:
        self.service, self.model = service, model
        self.max_output_tokens = service.max_output_tokens if max_output_tokens is None else int(max_output_tokens)
        self.reasoning_effort = reasoning_effort
        if base_url is None and not service.is_pinned(model):
            raise ConfigError(
                f"{service.name} model {model!r} is not pinned: the service may change its weights",
                f"name a snapshot, for example {service.name}:{service.example}",
            )
        if not timeout > 0 or self.max_output_tokens < 1:
            raise ConfigError(
                f"timeout and max_output_tokens must be above 0, got {timeout} and {max_output_tokens}",
                f"leave them at 60 and {service.max_output_tokens}",
            )
        address = urlsplit(base_url or "")
        host = "" if base_url is None else f"@{address.netloc.rpartition('@')[2]}"
        # Two servers may share one gateway. The default path is omitted, which keeps older cached replies valid.
        path = address.path.rstrip("/")
        self.identity = f"{service.name}{host}:{model}"
        self.settings: Mapping[str, str | int | float | None] = {
            "temperature": 0,
            "max_output_tokens": self.max_output_tokens,
            **({} if path in ("", "/v1") else {"path": path}),
            **({} if reasoning_effort is None else {"reasoning_effort": reasoning_effort}),
        }
        self._key = self._find_key(base_url, key_variable)
        try:
            import openai
        except ImportError as error:
            raise MissingPackageError(
                f"the judge needs the package openai, which cannot be imported: {error}",
                "pip install 'addiffusion-env[vlm]'",
            ) from error
        self._package: Any = openai
        self._client: Any = openai.OpenAI(
            api_key=self._key, base_url=base_url or service.home, timeout=float(timeout), max_retries=0
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identity})"

    def image_tokens(self, width: int, height: int) -> int:
        """Input tokens of an image, for estimates."""
        return self.service.image_tokens(width, height)

    def ask(self, parts: Sequence[Part]) -> Reply:
        """Sends one request, at temperature 0. Images are sent at full resolution (``detail=high``).

        Raises:
            AttemptError: for anything that is not a reply.
        """
        # Reasoning models refuse a temperature and the old name of the limit, which all other servers support.
        options: dict[str, Any] = {"max_tokens": self.max_output_tokens, "temperature": 0}
        if _REASONING.match(self.model):
            options = {"max_completion_tokens": self.max_output_tokens}
        if self.reasoning_effort is not None:
            options["reasoning_effort"] = self.reasoning_effort
        messages = [{"role": "user", "content": [_part(part) for part in parts]}]
        try:
            answer = self._client.chat.completions.create(model=self.model, messages=messages, **options)
        except self._package.APITimeoutError as error:
            raise AttemptError("no answer in time", retry=True, billed=True) from error
        except self._package.APIStatusError as error:
            if error.code in _FILTERED:
                return Reply("", 0, 0, self.model, refusal=str(error.code))
            raise self._refused(error) from None  # its text may contain the key
        except self._package.APIConnectionError as error:
            cause = error.__cause__ or error
            raise AttemptError(self._hide(f"no connection: {cause}"), retry=True, billed=True) from None
        except (ValueError, TypeError, AttributeError) as error:  # not JSON, or with unexpected types
            raise AttemptError(self._hide(f"malformed reply: {error}"), retry=True, billed=True) from None
        return self._read(answer)

    def _refused(self, error: Any) -> AttemptError:
        status = int(error.status_code)
        # Exhausted credit is a 429 too, but waiting does not help.
        retry = (status in (408, 409, 429) and error.code != "insufficient_quota") or status >= 500
        wait = retry_after(error.response.headers)
        if wait is None and (delay := re.search(r"'retryDelay': '([\d.]+)s'", str(error.body))):
            wait = float(delay[1])  # Google reports it in the body
        return AttemptError(self._hide(f"HTTP {status}: {error.message}"), retry=retry, wait=wait)

    def _read(self, answer: Any) -> Reply:
        try:  # a gateway's error page passes the package as a string, a missing field as None
            choice, usage = answer.choices[0], answer.usage
            message = choice.message
            text, refusal = _said(None if message is None else message.content)
            filtered = str(choice.finish_reason) if str(choice.finish_reason).startswith("content_filter") else ""
            given, written, total = (
                _count(usage, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")
            )
            return Reply(
                text=text,
                input_tokens=given,
                # Gemini includes reasoning only in the total. A text with 0 tokens was not counted.
                output_tokens=max(written, total - given) if written or not text else 0,
                model=str(answer.model or self.model),
                refusal=str((message and message.refusal) or refusal or filtered),
            )
        except (AttributeError, TypeError, IndexError, ValueError) as error:
            raise AttemptError(self._hide(f"malformed reply: {error}"), retry=True, billed=True) from None

    def _hide(self, text: object) -> str:
        """``text`` on one line, short, without the key: some services include it in their errors."""
        return " ".join(str(text).replace(self._key, HIDDEN).split())[:300]

    def _find_key(self, base_url: str | None, key_variable: str | None) -> str:
        if base_url is not None and key_variable is None:
            return "none-needed"  # the package requires one; local servers ignore it
        names = (key_variable,) if key_variable is not None else self.service.key_variables
        found = next((key for name in names if (key := os.environ.get(name, "").strip())), None)
        if found is None:
            raise ConfigError(
                f"no key for {self.service.name}: the environment variable {' or '.join(names)} is not set",
                f"export {names[0]}=..., or set base_url to your own server",
            )
        return found


def _count(usage: object, name: str) -> int:
    """A field of a service's usage; 0 if it is missing or not a count, which does not invalidate a reply."""
    found = getattr(usage, name, None)
    return int(found) if isinstance(found, (int, float)) and 0 <= found < float("inf") else 0


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    url = f"data:image/png;base64,{base64.b64encode(part).decode()}"
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


def _said(content: Any) -> tuple[str, str]:
    """Text and refusal of a message's content: a text, nothing, or a list of parts (Mistral, some gateways).

    Parts of other types (``thinking``, ``reasoning``) are not part of the answer.

    Raises:
        TypeError: for anything else.
    """
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise TypeError(f"content is of type {type(content).__name__}")
    texts, refusals = [], []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif not isinstance(part, Mapping):
            raise TypeError(f"a part of the content is of type {type(part).__name__}")
        elif part.get("type", "text") in ("text", "output_text") and not part.get("thought"):
            texts.append(str(part.get("text") or ""))
        elif part.get("type") == "refusal":
            refusals.append(str(part.get("refusal") or "refusal"))
    return "".join(texts), "".join(refusals)


@dataclass(frozen=True)
class Service:
    """A provider of vision-language models.

    Attributes:
        name: in specs, results and cache keys.
        summary: one line about it.
        home: base URL of its OpenAI-compatible endpoint.
        example: a pinned model.
        key_variables: environment variables that may hold the key; the first one that is set is used.
        is_pinned: whether the service promises that a model's name always refers to the same weights.
        image_tokens: (width, height) -> input tokens of an image, for estimates.
        max_output_tokens: default of the longest reply, reasoning included.
    """

    name: str
    summary: str
    home: str
    example: str
    key_variables: tuple[str, ...]
    is_pinned: Callable[[str], bool]
    image_tokens: Callable[[int, int], int]
    max_output_tokens: int


def openai_tokens(width: int, height: int) -> int:
    """85 and 170 per tile of 512 pixels, after fitting into 2048 and the shorter side into 768 (GPT-4o, GPT-4.1).

    Small variants of these models count more for the same image: set a higher price for them.

    >>> openai_tokens(64, 64), openai_tokens(1024, 1024)
    (255, 765)
    """
    scale = min(1.0, 2048 / max(width, height))
    scale = min(scale, 768 / min(width, height))
    return 85 + 170 * math.ceil(width * scale / 512) * math.ceil(height * scale / 512)


def gemini_tokens(width: int, height: int) -> int:
    """258 when both sides are at most 384 pixels, else 258 per tile of 768 (or of 2/3 of the shorter side, if less).

    Recent models may count differently; the booked cost follows the reported tokens.

    >>> gemini_tokens(64, 64), gemini_tokens(1024, 1024)
    (258, 1032)
    """
    if max(width, height) <= 384:
        return 258
    tile = min(768, max(256, math.floor(min(width, height) / 1.5)))
    return 258 * math.ceil(width / tile) * math.ceil(height / tile)


SERVICES: Mapping[str, Service] = {
    service.name: service
    for service in (
        Service(
            name="openai",
            summary="OpenAI, and with base_url any compatible server (vLLM, Ollama, llama.cpp, gateways)",
            home="https://api.openai.com/v1",
            example="gpt-4o-2024-11-20",
            key_variables=("OPENAI_API_KEY",),
            # Snapshots end in a date; gpt-4o and chatgpt-4o-latest change over time.
            is_pinned=lambda model: re.fullmatch(r".+-\d{4}-\d{2}-\d{2}", model) is not None,
            image_tokens=openai_tokens,
            max_output_tokens=1024,
        ),
        Service(
            name="gemini",
            summary="Google's Gemini through its OpenAI-compatible endpoint",
            home="https://generativelanguage.googleapis.com/v1beta/openai/",
            example="gemini-2.5-flash",
            key_variables=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
            # Stable names are fixed; those with latest or exp change over time.
            is_pinned=lambda model: re.search(r"latest|-exp(-|$)", model) is None,
            image_tokens=gemini_tokens,
            max_output_tokens=4096,  # its models reason by default, which counts as output
        ),
    )
}
"""Name -> service."""
