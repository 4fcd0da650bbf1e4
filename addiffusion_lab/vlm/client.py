"""What a judge needs of a service: one question of texts and pictures in, one reply out, troubles told apart."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias
from urllib.parse import urlsplit

from addiffusion_env.errors import AdDiffusionError, ConfigError

Part: TypeAlias = "str | bytes"
"""A text, or a PNG file."""

HIDDEN = "[key]"


class VlmServiceError(AdDiffusionError, ConnectionError):
    """A service that refuses, fails, or cannot be reached, after all retries."""


class AttemptError(Exception):
    """One attempt that failed. Its message never holds the key.

    Args:
        message: what happened.
        retry: whether the same request may succeed later.
        wait: seconds that the service asks to wait, or ``None``.
        billed: whether the service may have charged for it: it was reached, and nobody knows how far it got.
    """

    def __init__(self, message: str, *, retry: bool, wait: float | None = None, billed: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.retry = retry
        self.wait = wait
        self.billed = billed


@dataclass(frozen=True)
class Reply:
    """What a service said.

    Attributes:
        text: of the reply; empty when it refused to answer.
        input_tokens: as the service counted them, pictures included; 0 where it did not say.
        output_tokens: likewise, thinking included.
        model: the model that the service says has answered.
        refusal: why there is no text, in the service's words; empty otherwise.
    """

    text: str
    input_tokens: int
    output_tokens: int
    model: str
    refusal: str = ""


def token_count(usage: object, name: str) -> int:
    """A field of a service's usage; 0 where there is none or it is no count: that makes no reply a wrong one.

    >>> token_count(None, "prompt_tokens")
    0
    """
    found = getattr(usage, name, None)
    return int(found) if isinstance(found, (int, float)) and 0 <= found < float("inf") else 0


class VlmClient(ABC):
    """One model of one service. Safe to use from several threads.

    Keys come from environment variables only, so that no configuration, manifest or log can hold one. The variable
    that is read by default is never sent to another ``base_url``.

    Args:
        model: a name that stays with one set of weights.
        base_url: of another server that speaks the same protocol; ``None``: the service's own.
        key_variable: environment variable that holds the key; ``None``: the service's usual ones, or no key for a
            server of one's own.
        timeout: seconds without an answer after which an attempt counts as failed.
        max_output_tokens: longest reply, thinking included; what a call may cost follows from it.

    Attributes:
        identity: service, host (when not the service's own) and model: names the judge in results and cache keys.
        settings: what else may change a reply.
        path: of another server's address, unless it is the usual one.

    Raises:
        ConfigError: for a model that is not pinned, or a missing key.
        MissingPackageError: when the service's package is not installed.
    """

    service: ClassVar[str]
    example: ClassVar[str]
    home: ClassVar[str]
    key_variables: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        key_variable: str | None = None,
        timeout: float = 60.0,
        max_output_tokens: int = 1024,
    ) -> None:
        self.model = model
        self.max_output_tokens = int(max_output_tokens)
        if base_url is None and not self.is_pinned(model):
            raise ConfigError(
                f"{self.service} model {model!r} is not pinned: the service may change what it means",
                f"name a snapshot, for example {self.service}:{self.example}",
            )
        if not timeout > 0 or self.max_output_tokens < 1:
            raise ConfigError(
                f"timeout and max_output_tokens must be above 0, got {timeout} and {max_output_tokens}",
                "leave them at 60 and 1024",
            )
        host = "" if base_url is None else f"@{urlsplit(base_url).netloc.rpartition('@')[2]}"
        # Two servers behind one gateway; where every server has it, the path tells nothing (and old replies count).
        path = urlsplit(base_url or "").path.rstrip("/")
        self.path = "" if path == "/v1" else path
        self.identity = f"{self.service}{host}:{model}"
        self._key = self._find_key(base_url, key_variable)
        self._connect(base_url or self.home, self._key, float(timeout))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identity})"

    @property
    def settings(self) -> Mapping[str, str | int | float | None]:
        """What else may change a reply: temperature and the longest reply."""
        return {"temperature": 0, "max_output_tokens": self.max_output_tokens} | self._at

    @property
    def _at(self) -> dict[str, str]:
        return {"path": self.path} if self.path else {}

    @classmethod
    @abstractmethod
    def is_pinned(cls, model: str) -> bool:
        """Whether the service promises that ``model`` stays the same."""

    @abstractmethod
    def ask(self, parts: Sequence[Part]) -> Reply:
        """Asks once, at temperature 0.

        Raises:
            AttemptError: for anything that is not a reply.
        """

    @abstractmethod
    def image_tokens(self, width: int, height: int) -> int:
        """Input tokens that a picture counts, for estimates."""

    @abstractmethod
    def _connect(self, base_url: str, key: str, timeout: float) -> None:
        """Makes the service's own client, without retries of its own."""

    def _hide(self, text: object) -> str:
        """``text`` on one line, short, without the key: some services quote it in their errors."""
        return " ".join(str(text).replace(self._key, HIDDEN).split())[:300]

    def _find_key(self, base_url: str | None, key_variable: str | None) -> str:
        if base_url is not None and key_variable is None:
            return "none-needed"  # the packages insist on one; local servers read none
        names = (key_variable,) if key_variable is not None else self.key_variables
        found = next((key for name in names if (key := os.environ.get(name, "").strip())), None)
        if found is None:
            raise ConfigError(
                f"no key for {self.service}: the environment variable {' or '.join(names)} is not set",
                f"export {names[0]}=..., or set base_url to a server of your own",
            )
        return found
