from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest

from addiffusion_env.backbones.emoji import (
    COMPONENTS,
    MANIFEST,
    WEIGHTS,
    read_manifest,
    verify,
    write_manifest,
)
from addiffusion_env.backbones.emoji.__main__ import main
from addiffusion_env.errors import UnknownNameError, WeightsError

PREVIEW_FILE = "preview/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of two components and the manifest, to be modified."""
    folder = tmp_path / "weights"
    for component in ("preview", "scheduler"):
        shutil.copytree(WEIGHTS / component, folder / component)
    shutil.copy(WEIGHTS / MANIFEST, folder / MANIFEST)
    return folder


@pytest.mark.parametrize("component", sorted(read_manifest()))
def test_shipped_components_are_intact(component: str) -> None:
    folder = verify(WEIGHTS, component)
    listed = read_manifest()[component]["files"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(listed)


def test_every_shipped_file_is_listed() -> None:
    shipped = {path for path in WEIGHTS.rglob("*") if path.is_file()} - {WEIGHTS / MANIFEST}
    listed = {WEIGHTS / entry["folder"] / name for entry in read_manifest().values() for name in entry["files"]}
    assert shipped == {path for path in listed if WEIGHTS in path.parents and ".." not in path.parts}


def test_provenance_is_complete_and_true() -> None:
    entries = read_manifest()
    assert set(entries) == set(COMPONENTS)
    for name, entry in entries.items():
        module, _, attribute = entry["loaded_by"].rpartition(".")
        assert hasattr(import_module(module), attribute), name
        assert entry["made"]
        assert entry["licence"]


def test_remedies_name_real_stages() -> None:
    from addiffusion_lab.emoji_training import STAGES

    assert {component.stage.split(" ")[0] for component in COMPONENTS.values()} - {""} <= set(STAGES)


def test_returns_the_folder(copied: Path) -> None:
    assert verify(copied, "preview") == (copied / "preview").resolve()
    assert verify(str(copied), "preview") == (copied / "preview").resolve()


def test_missing_file(copied: Path) -> None:
    (copied / PREVIEW_FILE).unlink()
    with pytest.raises(WeightsError, match="is missing, expected a file of 531502 bytes") as caught:
        verify(copied, "preview")
    assert PREVIEW_FILE in caught.value.cause
    assert f"python -m addiffusion_lab.emoji_training preview --out {copied.resolve()}" in caught.value.remedy
    assert verify(copied, "scheduler").is_dir()  # other components still load


def test_truncated_file(copied: Path) -> None:
    path = copied / PREVIEW_FILE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"safetensors is corrupted: 1000 bytes, expected 531502"):
        verify(copied, "preview")


def test_tampered_file(copied: Path) -> None:
    path = copied / PREVIEW_FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"is corrupted: sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"):
        verify(copied, "preview")


def test_a_mended_file_loads_in_the_same_process(copied: Path) -> None:
    path = copied / PREVIEW_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(WeightsError):
        verify(copied, "preview")
    path.write_bytes(whole)
    verify(copied, "preview")


def test_checks_once_a_process(copied: Path) -> None:
    verify(copied, "preview")
    (copied / PREVIEW_FILE).write_bytes(b"")
    verify(copied, "preview")  # verified already: not read again
    write_manifest(copied)  # clears the verified components
    (copied / PREVIEW_FILE).write_bytes(b"x")
    with pytest.raises(WeightsError, match="1 bytes, expected 0"):
        verify(copied, "preview")


def test_missing_manifest(copied: Path) -> None:
    (copied / MANIFEST).unlink()
    with pytest.raises(WeightsError, match=r"manifest\.json is missing") as caught:
        verify(copied, "preview")
    assert "--write" in caught.value.remedy


@pytest.mark.parametrize("text", ["", "{", "[]", '{"components": {"preview": {"files": {}}}}', '{"components": []}'])
def test_broken_manifest(copied: Path, text: str) -> None:
    (copied / MANIFEST).write_text(text)
    with pytest.raises(WeightsError, match=r"manifest\.json is not a valid manifest"):
        verify(copied, "preview")


def test_unknown_component() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'unet'"):
        verify(WEIGHTS, "unett")


def test_write_manifest_lists_what_is_there(copied: Path) -> None:
    (copied / "notes.txt").write_text("not a component")
    entries = write_manifest(copied)
    assert set(entries) == {"preview", "scheduler"}
    assert entries == read_manifest(copied)
    assert entries["preview"]["files"] == read_manifest()["preview"]["files"]


def test_command_checks_and_renews(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(copied), "--write"])
    assert "preview" in capsys.readouterr().out
    path = copied / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({}))
    with pytest.raises(SystemExit):
        main([str(copied)])
    assert "scheduler_config.json is corrupted" in capsys.readouterr().err
