"""Replies on disk: one small file each, keyed by the content of the question, written atomically."""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from addiffusion_env.errors import RunFolderError
from addiffusion_env.files import whole_file
from addiffusion_lab.vlm.client import Reply, VlmClient
from addiffusion_lab.vlm.question import template_digest


class ReplyCache:
    """Cache of raw replies, so that verdicts can be parsed again and are paid for only once.

    Args:
        folder: created if missing; ``None`` disables the cache.
    """

    def __init__(self, folder: Path | str | None) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()

    @staticmethod
    def key(client: VlmClient, prompt: str, first: str, second: str) -> str:
        """64 hex digits of judge, its settings, wording, prompt and the content hashes of both images, in order."""
        asked = [client.identity, sorted(client.settings.items()), template_digest(), prompt, first, second]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def read(self, key: str) -> Reply | None:
        """The reply of ``key``, or ``None``; for an unreadable file a warning is issued and ``None`` returned."""
        if self.folder is None:
            return None
        path = self._path(key)
        try:
            return Reply(**json.loads(path.read_text(encoding="utf-8"))["reply"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"cached reply {path} cannot be read ({error}): asked again", stacklevel=2)
            return None

    def write(self, key: str, client: VlmClient, prompt: str, reply: Reply) -> None:
        """Stores a reply.

        Raises:
            RunFolderError: when it cannot be written.
        """
        if self.folder is None:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        entry = {"judge": client.identity, "prompt": prompt, "asked_at": now, "reply": asdict(reply)}
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                file.write(json.dumps(entry, ensure_ascii=False, indent=1).encode())
        except OSError as error:
            raise RunFolderError(
                f"cannot keep replies in {self.folder}: {error.strerror or error}", "set another cache folder"
            ) from error

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.json"
