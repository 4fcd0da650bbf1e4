"""A margin, and where and when it was set: a margin chosen after the data proves nothing."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from addiffusion_env.errors import ConfigError, nearest
from addiffusion_env.evaluation.statistics.arrays import positive_margin


@dataclass(frozen=True)
class Margin:
    """The largest deficit that does not matter, and its history.

    Attributes:
        value: in the measure's units, above 0.
        measure: which measure it is for (``"correct"``).
        source: where it was set: ``"configs/eval.yaml:33"``, or in words.
        set_at: when it was set there; UTC, ISO 8601.
        dated_by: what says so: ``"git commit 1edd7ed20c1f"`` or ``"file time"``.
        digest: sha256 of the file, or empty when there is none.
        records_before: records that were there when the run first read it; above 0 it may have been chosen with
            knowledge.
    """

    value: float
    measure: str
    source: str
    set_at: str
    dated_by: str
    digest: str
    records_before: int

    def __post_init__(self) -> None:
        positive_margin(self.value)

    @property
    def before_data(self) -> bool:
        """Whether it was fixed before any picture was judged."""
        return self.records_before == 0

    def __str__(self) -> str:
        when = "before any record" if self.before_data else f"after {self.records_before} records"
        file = f", file {self.digest[:12]}" if self.digest else ""
        return f"{self.value:g} in {self.measure}, {self.source} ({self.dated_by}, {self.set_at}{file}), {when}"


def read_margin(path: Path | str, key: str, measure: str, records_before: int) -> Margin:
    """Reads a margin from a YAML file, with the line it stands in and the date of that line.

    The date is that of the commit that last changed the line (``git blame``); a line that is in no commit is as young
    as its file.

    Args:
        path: the file.
        key: dotted path of the number in it: ``"margin"``, ``"hypotheses.margins.correct"``.
        measure: which measure it is for.
        records_before: see :class:`Margin`.

    Raises:
        ConfigError: when the file or the key is missing, or no number above 0 stands there.
    """
    file = Path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"no margin can be read from {file}: {error.strerror}", "name the config file") from error
    text, line = _find(content.decode("utf-8"), key.split("."), file)
    try:
        value = float(text)
    except ValueError as error:
        raise ConfigError(f"{file}:{line}: {key} is {text!r}, not a number", "write for example 0.01") from error
    set_at, dated_by = _commit_of(file, line) or (_utc(file.stat().st_mtime), "file time")
    return Margin(
        value=value,
        measure=measure,
        source=f"{file}:{line}",
        set_at=set_at,
        dated_by=dated_by,
        digest=hashlib.sha256(content).hexdigest(),
        records_before=int(records_before),
    )


def _find(text: str, keys: Sequence[str], file: Path) -> tuple[str, int]:
    """The text of a scalar and its line, counted from 1."""
    import yaml

    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for key in keys:
        found = {child.value: value for child, value in node.value} if isinstance(node, yaml.MappingNode) else {}
        if key not in found:
            raise ConfigError(f"{file} has no key {'.'.join(keys)!r}", nearest(key, found or ["(none)"]))
        node = found[key]
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{file}: {'.'.join(keys)!r} is not a number", "name the number's own key")
    return str(node.value), node.start_mark.line + 1


def _commit_of(file: Path, line: int) -> tuple[str, str] | None:
    """(date, ``"git commit ..."``) of the commit that last changed a line; ``None`` without one."""
    command = ["git", "-C", str(file.resolve().parent), "blame", "--porcelain", f"-L{line},{line}", "--", file.name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    commit = done.stdout.split(maxsplit=1)[0]
    times = [row.split()[1] for row in done.stdout.splitlines() if row.startswith("committer-time ")]
    if not times or not commit.strip("0"):  # all zeros: not committed yet
        return None
    return _utc(float(times[0])), f"git commit {commit[:12]}"


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
