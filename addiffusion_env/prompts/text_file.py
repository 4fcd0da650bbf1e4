"""Prompts from a text file, one per line."""

from __future__ import annotations

from pathlib import Path

from addiffusion_env.errors import PromptError
from addiffusion_env.prompts import Prompt, PromptList, split_list


class TextFilePrompts(PromptList):
    """The prompts of a UTF-8 text file, one per line, in its order.

    Blank lines and lines that begin with ``#`` are skipped; duplicate lines are skipped, since
    records are joined on the prompt.

    Args:
        path: the file.
        split: ``"train"``, ``"test"`` or ``"all"``; see :func:`.split_list`.

    Raises:
        PromptError: when the file is missing, unreadable, not UTF-8, or holds no prompt of the split.
        UnknownNameError: for an unknown split.
    """

    def __init__(self, path: str | Path, split: str = "all") -> None:
        self.path = Path(path)
        prompts = [Prompt.of(line) for line in _read_lines(self.path)]
        super().__init__(split_list(prompts, split, str(self.path)), name=self.path.name)


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # -sig: Windows editors write a byte order mark
    except FileNotFoundError as error:
        raise PromptError(f"no prompt file at {path}", "give the path of a text file, one prompt per line") from error
    except UnicodeDecodeError as error:
        raise PromptError(
            f"prompt file {path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start}",
            "save it as UTF-8",
        ) from error
    except OSError as error:
        raise PromptError(
            f"prompt file {path} cannot be read: {error.strerror}", "give a readable text file"
        ) from error
    lines = (line.strip() for line in text.splitlines())
    prompts = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not prompts:
        raise PromptError(f"prompt file {path} holds no prompt", "write one prompt per line; lines with # are comments")
    return prompts
