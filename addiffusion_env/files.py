"""Files: atomic writes, weights in folders and on the hub.

Backbones, scorers and policies all load their files through this module, so that errors for missing weights are
uniform: the id, the folder searched, the reason, the command that downloads it, and the environment that works offline.
"""

from __future__ import annotations

import json
import os
import re
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from addiffusion_env.errors import AdDiffusionError, RunFolderError, WeightsError


def stamp_of(path: Path | str) -> tuple[tuple[str, int, int], ...]:
    """Name, size and modification time of a file, or of all files below a folder; it changes when files are written.

    Empty if nothing exists there. For caches within a process; persistent caches use the content instead.
    """
    root = Path(path).expanduser()
    files = sorted(root.rglob("*")) if root.is_dir() else [root]
    found = []
    for file in files:
        with suppress(OSError):
            status = file.stat()
            if not stat.S_ISDIR(status.st_mode):
                found.append((str(file), status.st_size, status.st_mtime_ns))
    return tuple(found)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Context manager for an atomic write: yields a temporary file that is flushed and renamed to ``path`` at the end.

    The folder is flushed as well, so that the file survives a power failure.

    On an error the previous file is left in place and the temporary one removed. Several processes and threads may
    write the same path: the last one wins. ``OSError`` is left to the caller, who knows the remedy.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _flush_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows cannot open folders; there the rename itself is journalled
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing_to(
    folder: Path, purpose: str = "write to", remedy: str = "free space, or choose another folder"
) -> Iterator[None]:
    """Context manager that turns errors of writing files (disk full, no permission) into a RunFolderError.

    Args:
        folder: what is written to.
        purpose: completes "cannot ... FOLDER" in the error.
        remedy: of the error.

    Raises:
        RunFolderError: for any ``OSError`` that is not already an :class:`AdDiffusionError`.
    """
    try:
        yield
    except AdDiffusionError:
        raise
    except OSError as error:
        raise RunFolderError(f"cannot {purpose} {folder}: {error.strerror or error}", remedy) from error


def write_text(path: Path, text: str) -> Path:
    """Writes a file atomically, in a folder that is created if it is missing.

    Raises:
        RunFolderError: when it cannot be written.
    """
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(text.encode())
    return path


WORKS_OFFLINE = "AdDiffusion-Emoji-v2 needs no download and works now"

# By class name, since huggingface_hub has moved these classes between modules in minor versions.
REASONS = {
    "GatedRepoError": "its licence has not been accepted from this account (gated repository)",
    "RepositoryNotFoundError": "the hub has no such repository, or a private one",
    "RevisionNotFoundError": "the repository has no such revision",
    "HFValidationError": "that is no id of a repository, which reads owner/name",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set",
    "SSLError": "the hub's certificate is not accepted (a proxy between, or a wrong clock)",
    "ProxyError": "the proxy cannot be reached",
    "ConnectError": "no network",
    "ConnectionError": "no network",
    "TimeoutException": "the hub does not answer in time",
    "gaierror": "no network",
    "RemoteEntryNotFoundError": "the repository has no such file",
    "EntryNotFoundError": "the repository has no such file",
    "LocalEntryNotFoundError": "local_files_only is set",  # or a network error, which is among the causes then
}


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes and contexts, outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def reason_of(error: BaseException) -> str:
    """Why a download failed, in a few words: the most specific reason among an error and its causes."""
    from huggingface_hub import constants

    # Each by its most derived known class: LocalEntryNotFoundError is also an EntryNotFoundError.
    classes = [[kind.__name__ for kind in type(cause).__mro__] for cause in causes(error)]
    found = {next((name for name in names if name in REASONS), "") for names in classes}
    if constants.HF_HUB_OFFLINE and "HFValidationError" not in found:
        return REASONS["OfflineModeIsEnabled"]
    # In this order: "not cached" is often only the consequence of one of the others.
    return next((reason for name, reason in REASONS.items() if name in found), in_a_line(error))


def in_a_line(error: BaseException) -> str:
    """An error's class and the first line of its message."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def again(path: Path) -> str:
    """The remedy for a damaged or missing file: the hub's download command if it is in the hub's cache.

    Args:
        path: the file; ``folder / "*"`` for all files of a folder.

    >>> again(Path("/hub/models--openai--clip/snapshots/1f3e/vae/config.json")).split(";")[0]
    'run `hf download openai/clip vae/config.json --force-download`'
    >>> again(Path("/hub/models--openai--clip/snapshots/1f3e/vae/*")).split(";")[0]
    "run `hf download openai/clip --include 'vae/*' --force-download`"
    >>> again(Path("/data/clip/config.json")).split(";")[0]
    'copy /data/clip/config.json again from its source'
    """
    parts = path.parts
    for index, part in enumerate(parts):
        if part.startswith("models--") and parts[index + 1 : index + 2] == ("snapshots",):
            repo_id = part.removeprefix("models--").replace("--", "/")
            file = "/".join(parts[index + 3 :])  # below the revision
            chosen = f"--include '{file}'" if "*" in file else file
            return f"run `hf download {repo_id} {chosen} --force-download`; {WORKS_OFFLINE}"
    return f"copy {path} again from its source; {WORKS_OFFLINE}"


def unavailable(repo_id: str, files: Sequence[str], reason: str, looked_in: Path | None = None) -> WeightsError:
    """The error for weights that are neither in the cache nor downloadable.

    Args:
        repo_id: hub id, for example ``"THUDM/ImageReward"``.
        files: names or patterns of the files needed; empty for the whole repository.
        reason: why the download failed, in a few words.
        looked_in: the cache that was searched; by default the hub's.
    """
    folder = looked_in or repo_folder(repo_id)
    asked = [f"--include '{file}'" for file in files] if "*" in "".join(files) else list(files)
    command = " ".join(["hf download", repo_id, *asked])
    remedy = f"on a machine with network access run `{command}`"
    if reason == REASONS["GatedRepoError"]:
        remedy = f"accept the licence at https://huggingface.co/{repo_id}, run `hf auth login`; {remedy}"
    elif reason == REASONS["OfflineModeIsEnabled"]:
        remedy = f"unset it, or {remedy}"
    elif reason == REASONS["HFValidationError"]:
        remedy = "correct the path or the id"
    return WeightsError(
        f"{repo_id} is neither a folder here nor complete in {folder}, and cannot be fetched: {reason}",
        f"{remedy}; {WORKS_OFFLINE}",
    )


def repo_folder(repo_id: str) -> Path:
    """The folder of a repository in the hub's cache: ``HF_HUB_CACHE``, or ``~/.cache/huggingface/hub``."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}"


def cached(repo_id: str, file: str = "model_index.json") -> bool:
    """Whether the hub's cache on this machine has a snapshot of a repository that contains a file."""
    return any(repo_folder(repo_id).glob(f"snapshots/*/{file}"))


class OnTheHub:
    """Mixin of components whose weights are one repository on the hub, the ``default_id`` of its spec."""

    spec: ClassVar[Any]

    @classmethod
    def needs(cls) -> str:
        """The missing weights; empty if they are in the hub's cache."""
        return "" if cached(cls.spec.default_id) else f"weights {cls.spec.default_id}"


def ask_hub(repo_id: str, files: Sequence[str] = ()) -> None:
    """Checks that the hub has a repository, since without network a download retries for half a minute per file.

    Args:
        repo_id: hub id.
        files: see :func:`unavailable`.

    Raises:
        WeightsError: if the hub does not answer, or has no such repository.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(repo_id, timeout=10)
    except Exception as error:
        raise unavailable(repo_id, files, reason_of(error)) from error


def hub_file(repo_id: str, filename: str, needed: Sequence[str] = ()) -> Path:
    """The local path of one file of a hub repository, downloaded if it is not cached.

    Args:
        repo_id: hub id.
        filename: name of the file in the repository.
        needed: all files or patterns that the caller needs from the repository, if more than this one.

    Raises:
        WeightsError: if it cannot be downloaded; names the id, the cache searched and the download command.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    files = needed or [filename]
    # Without network the error is a subclass of OSError or one of the HTTP library, depending on the hub's version.
    try:
        is_cached = isinstance(try_to_load_from_cache(repo_id, filename), str)
    except Exception as error:  # an invalid id
        raise unavailable(repo_id, files, reason_of(error)) from error
    if not is_cached:
        ask_hub(repo_id, files)
    try:
        return Path(hf_hub_download(repo_id, filename))
    except Exception as error:
        raise unavailable(repo_id, files, reason_of(error)) from error


def looks_like_path(name_or_path: str | Path) -> bool:
    r"""Whether ``name_or_path`` must be a path: hub ids contain at most one slash and do not start like a path.

    >>> [looks_like_path(x) for x in ("facebook/dinov2-small", "gpt2", "./clip", "/data/clip", "a/b/c")]
    [False, False, True, True, True]
    >>> [looks_like_path(x) for x in (r"C:\models\sd15", r"models\sd15", "D:/sd15", "fixed:3")]  # Windows
    [True, True, True, False]
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.startswith((".", "~", "/")) or text.count("/") > 1:
        return True
    return "\\" in text or re.match(r"[A-Za-z]:/", text) is not None


def folder_of(name_or_path: str | Path, patterns: Sequence[str] = ()) -> Path:
    """The local folder of a model: ``name_or_path`` itself if it is a folder, else its hub snapshot.

    Args:
        name_or_path: a folder, or a hub id, for example ``"facebook/dinov2-small"``.
        patterns: file name patterns to download; empty for all files.

    Raises:
        WeightsError: for a path that is not a folder, or a hub id that cannot be downloaded.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if looks_like_path(name_or_path):
        raise WeightsError(
            f"no such folder: {path}", f"give a model folder or a hub id of the form 'owner/name'; {WORKS_OFFLINE}"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name_or_path), allow_patterns=list(patterns) or None))
    except Exception as error:
        raise unavailable(str(name_or_path), patterns, reason_of(error)) from error


def file_in(folder: Path, *names: str) -> Path:
    """The first of ``names`` that exists in ``folder``.

    Raises:
        WeightsError: if none does; lists the folder's files.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    found = ", ".join(sorted(os.listdir(folder))[:8]) if folder.is_dir() else "no such folder"
    raise WeightsError(f"{folder} holds none of {', '.join(names)} (it holds: {found})", "give the model's folder")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        WeightsError: if the file is missing or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {error}", again(path)) from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds a {type(value).__name__}, expected a JSON object", "check the file's name")
    return value
