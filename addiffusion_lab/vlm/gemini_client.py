"""Google's Gemini through its own package."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar

from addiffusion_env.errors import MissingPackageError
from addiffusion_lab.vlm.client import AttemptError, Part, Reply, VlmClient, token_count
from addiffusion_lab.vlm.retries import duration, retry_after

_MOVING = re.compile(r"latest|-exp(-|$)")


class GeminiClient(VlmClient):
    """A Gemini model. See :class:`VlmClient`.

    Args:
        model: see there.
        thinking_budget: most tokens that the model may think, of ``max_output_tokens``; ``None``: its own choice.
        **options: see there; ``max_output_tokens`` is 4096 here, as thinking counts.
    """

    service: ClassVar[str] = "gemini"
    example: ClassVar[str] = "gemini-2.5-flash"
    home: ClassVar[str] = "https://generativelanguage.googleapis.com"
    key_variables: ClassVar[tuple[str, ...]] = ("GEMINI_API_KEY", "GOOGLE_API_KEY")

    def __init__(self, model: str, *, thinking_budget: int | None = None, **options: Any) -> None:
        self.thinking_budget = thinking_budget
        super().__init__(model, **{"max_output_tokens": 4096, **options})

    @property
    def settings(self) -> Mapping[str, str | int | float | None]:
        """What else may change a reply."""
        return {**super().settings, "thinking_budget": self.thinking_budget}

    @classmethod
    def is_pinned(cls, model: str) -> bool:
        """Stable names stay; those with ``latest`` or ``exp`` move."""
        return _MOVING.search(model) is None

    def image_tokens(self, width: int, height: int) -> int:
        """258 when both sides are 384 pixels or less, else 258 a tile of 768 (or of 2/3 of the shorter side, if less).

        The last models count otherwise at times; what they report is what is charged here.
        """
        if max(width, height) <= 384:
            return 258
        tile = min(768, max(256, math.floor(min(width, height) / 1.5)))
        return 258 * math.ceil(width / tile) * math.ceil(height / tile)

    def ask(self, parts: Sequence[Part]) -> Reply:
        """See :meth:`VlmClient.ask`."""
        types = self._types
        contents = [
            types.Part.from_bytes(data=part, mime_type="image/png")
            if isinstance(part, bytes)
            else types.Part.from_text(text=part)
            for part in parts
        ]
        thinking = None if self.thinking_budget is None else types.ThinkingConfig(thinking_budget=self.thinking_budget)
        config = types.GenerateContentConfig(
            temperature=0,
            max_output_tokens=self.max_output_tokens,
            thinking_config=thinking,
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        )
        try:
            answer = self._client.models.generate_content(model=self.model, contents=contents, config=config)
        except self._errors.APIError as error:
            raise self._refused(error) from None  # its text may quote the key
        except self._timeouts as error:
            raise AttemptError("no answer in time", retry=True, billed=True) from error
        except self._breaks as error:
            raise AttemptError(self._hide(f"no connection: {error}"), retry=True, billed=True) from None
        except (ValueError, TypeError, AttributeError) as error:  # no JSON, or of other types than it reads
            raise AttemptError(self._hide(f"malformed reply: {error}"), retry=True, billed=True) from None
        return self._read(answer)

    def _connect(self, base_url: str, key: str, timeout: float) -> None:
        try:
            from google import genai
            from google.genai import errors, types
        except ImportError as error:
            raise MissingPackageError(
                f"the judge needs the package google-genai, which cannot be imported: {error}",
                "pip install 'addiffusion-env[vlm]'",
            ) from error
        self._errors: Any = errors
        self._types: Any = types
        self._timeouts = _of_http("TimeoutException")
        self._breaks = _of_http("TransportError")
        once = types.HttpRetryOptions(attempts=1)
        options = types.HttpOptions(base_url=base_url, timeout=math.ceil(timeout * 1000), retry_options=once)
        self._client: Any = genai.Client(vertexai=False, api_key=key, http_options=options)

    def _refused(self, error: Any) -> AttemptError:
        status = int(error.code or 0)
        wait = retry_after(getattr(error.response, "headers", None) or {})
        if wait is None:
            wait = _retry_info(error.details)
        message = self._hide(f"HTTP {status} {error.status or ''}: {error.message}")
        return AttemptError(message, retry=status in (408, 409, 429) or status >= 500, wait=wait)

    def _read(self, answer: Any) -> Reply:
        blocked = getattr(answer.prompt_feedback, "block_reason", None)
        if not answer.candidates and blocked is None:
            raise AttemptError("malformed reply: neither candidates nor a reason for none", retry=True, billed=True)
        candidate = answer.candidates[0] if answer.candidates else None
        parts = candidate.content.parts if candidate is not None and candidate.content is not None else None
        text = "".join(part.text for part in parts or [] if part.text and not part.thought)
        reason = blocked if candidate is None else candidate.finish_reason
        usage = answer.usage_metadata
        answered = token_count(usage, "candidates_token_count")
        return Reply(
            text=text,
            input_tokens=token_count(usage, "prompt_token_count"),
            # A text without tokens was not counted; the thoughts alone are not the whole then.
            output_tokens=answered + token_count(usage, "thoughts_token_count") if answered or not text else 0,
            model=str(answer.model_version or self.model),
            refusal="" if text else str(getattr(reason, "value", reason) or "no text"),
        )


def _of_http(name: str) -> tuple[type[Exception], ...]:
    """An exception of httpx and of httpx2, whichever are there: the package runs on either."""
    found = []
    for module in ("httpx", "httpx2"):
        try:
            found.append(getattr(import_module(module), name))
        except ImportError:
            continue
    return tuple(found)


def _retry_info(details: Any) -> float | None:
    """Seconds of ``google.rpc.RetryInfo`` in an error's body."""
    error = details.get("error", details) if isinstance(details, dict) else {}
    entries = error.get("details") if isinstance(error, dict) else None
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and "retryDelay" in entry:
            return duration(str(entry["retryDelay"]))
    return None
