"""OpenAI's chat completions, and every server that speaks that protocol (vLLM, Ollama, llama.cpp, gateways)."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from addiffusion_env.errors import MissingPackageError
from addiffusion_lab.vlm.client import AttemptError, Part, Reply, VlmClient, token_count
from addiffusion_lab.vlm.retries import retry_after

_SNAPSHOT = re.compile(r".+-\d{4}-\d{2}-\d{2}")
_FILTERED = ("content_filter", "content_policy_violation")  # the picture is refused, not the account
_REASONING = re.compile(r"o\d|gpt-5")


class OpenAIClient(VlmClient):
    """A model behind OpenAI's protocol; pictures are sent whole (``detail=high``). See :class:`VlmClient`."""

    service: ClassVar[str] = "openai"
    example: ClassVar[str] = "gpt-4o-2024-11-20"
    home: ClassVar[str] = "https://api.openai.com/v1"
    key_variables: ClassVar[tuple[str, ...]] = ("OPENAI_API_KEY",)

    @classmethod
    def is_pinned(cls, model: str) -> bool:
        """Snapshots end in a date; ``gpt-4o`` and ``chatgpt-4o-latest`` move."""
        return _SNAPSHOT.fullmatch(model) is not None

    def image_tokens(self, width: int, height: int) -> int:
        """85 and 170 a tile of 512 pixels, after fitting into 2048 and the shorter side into 768 (GPT-4o, GPT-4.1).

        Small variants of these models count more for the same picture: set a price that says so.
        """
        scale = min(1.0, 2048 / max(width, height))
        scale = min(scale, 768 / min(width, height))
        return 85 + 170 * math.ceil(width * scale / 512) * math.ceil(height * scale / 512)

    def ask(self, parts: Sequence[Part]) -> Reply:
        """See :meth:`VlmClient.ask`."""
        content = [_part(part) for part in parts]
        # Reasoning models refuse a temperature and the old name of the limit, which all other servers know.
        limits: dict[str, Any] = {"max_tokens": self.max_output_tokens, "temperature": 0}
        if _REASONING.match(self.model):
            limits = {"max_completion_tokens": self.max_output_tokens}
        try:
            answer = self._client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": content}], **limits
            )
        except self._package.APITimeoutError as error:
            raise AttemptError("no answer in time", retry=True, billed=True) from error
        except self._package.APIStatusError as error:
            if error.code in _FILTERED:
                return Reply("", 0, 0, self.model, refusal=str(error.code))
            raise self._refused(error) from None  # its text may quote the key
        except self._package.APIConnectionError as error:
            raise AttemptError(
                self._hide(f"no connection: {error.__cause__ or error}"), retry=True, billed=True
            ) from None
        except (ValueError, TypeError, AttributeError) as error:  # no JSON, or of other types than it reads
            raise AttemptError(self._hide(f"malformed reply: {error}"), retry=True, billed=True) from None
        return self._read(answer)

    def _connect(self, base_url: str, key: str, timeout: float) -> None:
        try:
            import openai
        except ImportError as error:
            raise MissingPackageError(
                f"the judge needs the package openai, which cannot be imported: {error}",
                "pip install 'addiffusion-env[vlm]'",
            ) from error
        self._package: Any = openai
        self._client: Any = openai.OpenAI(api_key=key, base_url=base_url, timeout=timeout, max_retries=0)

    def _refused(self, error: Any) -> AttemptError:
        status = int(error.status_code)
        # Out of money is a 429 too, but waiting does not help.
        retry = (status in (408, 409, 429) and error.code != "insufficient_quota") or status >= 500
        message = self._hide(f"HTTP {status}: {error.message}")
        return AttemptError(message, retry=retry, wait=retry_after(error.response.headers))

    def _read(self, answer: Any) -> Reply:
        try:  # a gateway's error page passes the package as a string, a missing field as None
            choice, usage = answer.choices[0], answer.usage
            text, refusal = _said(choice.message.content)
            if choice.finish_reason == "content_filter":
                refusal = refusal or "content_filter"
            return Reply(
                text=text,
                input_tokens=token_count(usage, "prompt_tokens"),
                output_tokens=token_count(usage, "completion_tokens"),
                model=str(answer.model or self.model),
                refusal=str(choice.message.refusal or refusal),
            )
        except (AttributeError, TypeError, IndexError, ValueError) as error:
            raise AttemptError(self._hide(f"malformed reply: {error}"), retry=True, billed=True) from None


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    url = f"data:image/png;base64,{base64.b64encode(part).decode()}"
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


def _said(content: Any) -> tuple[str, str]:
    """Text and refusal of a message's content: a text, nothing, or a list of parts (Mistral, some gateways).

    Parts of other types (``thinking``, ``reasoning``) are not what the model answers.

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
