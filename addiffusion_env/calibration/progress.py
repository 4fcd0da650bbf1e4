"""What a calibration has recorded and spent, so that it goes on after an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from addiffusion_env.errors import ResumeError
from addiffusion_env.files import write_text


class Progress:
    """What a calibration has recorded and spent, in a file.

    Args:
        path: of the file.
        fingerprint: of what is recorded; another one begins anew.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.images, self.spent, self.recording = 0, 0.0, 0.0
        try:
            held: Any = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"fingerprint": None}
            if held["fingerprint"] == fingerprint:
                self.images = int(held["images"])
                self.spent, self.recording = float(held["seconds"]), float(held["recording"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResumeError(f"{path} cannot be read: {error}", "delete it: recorded attempts are kept") from error

    @property
    def pace(self) -> float | None:
        """Seconds an image; ``None`` before the first shard."""
        return self.recording / self.images if self.images else None

    def add(self, images: int, seconds: float) -> None:
        """Notes a recorded shard."""
        self.images, self.spent, self.recording = self.images + images, self.spent + seconds, self.recording + seconds
        spent = {"images": self.images, "seconds": self.spent, "recording": self.recording}
        write_text(self.path, json.dumps({"fingerprint": self.fingerprint, **spent}))
