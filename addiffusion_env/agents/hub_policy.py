"""Policies by name (shipped, in a folder, or on the Hugging Face hub, in one format of plain files), and their card.

A policy's repository holds ``policy.safetensors``, ``config.json``, ``README.md`` (its model card) and, where its run
fitted a calibrator, ``calibrator.safetensors``. Reading it executes no code from these files.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, snapshot_download

from addiffusion_env.agents.calibrator_file import CALIBRATOR_FILE
from addiffusion_env.agents.policy_file import CONFIG_FILE, WEIGHTS_FILE, PolicyConfig, find_policy
from addiffusion_env.backbones import BACKBONES
from addiffusion_env.backbones.pipelines import INDEX, backbone_in
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import WeightsError, check_settings
from addiffusion_env.files import looks_like_path, reason_of, repo_folder, unavailable
from addiffusion_env.pages import TEMPLATES, markdown_table

CARD_FILE = "README.md"
FILES = (CONFIG_FILE, WEIGHTS_FILE, CALIBRATOR_FILE, CARD_FILE, INDEX)
"""Files fetched from a repository: a policy's files, and the one that shows that it is a diffusers model instead."""
HUB_OPTIONS = ("revision", "cache_dir", "token", "force_download", "local_files_only")
ZIP_IMPORT = "addiffusion_env.agents.sb3_zip.import_zip"

CARD_DATA: Mapping[str, Any] = {
    "library_name": "addiffusion",
    "license": "apache-2.0",
    "pipeline_tag": "text-to-image",
    "tags": ["reinforcement-learning", "stable-baselines3", "adaptive-inference"],
}
COLUMNS = {"correct": "correct", "nfe": "NFE", "preference": "preference", "seconds": "seconds"}
"""Figure -> its heading in the card's table."""


def named_policy(name_or_dir: str | Path, **hub: Any) -> Path | None:
    """The folder of a policy: a shipped one, a policy's or a run's folder, or a hub id, downloaded if necessary.

    Args:
        name_or_dir: a name of the form ``owner/name`` that is not a folder is looked up on the hub.
        **hub: :data:`HUB_OPTIONS`.

    Returns:
        ``None`` for a bare name that matches no policy.

    Raises:
        WeightsError: when it is a path or a hub id without a policy.
        ConfigError: for another keyword.
    """
    place = located(name_or_dir, **hub)
    if place is None or find_policy(place) is not None:
        return place
    raise no_policy(name_or_dir, place)


def located(name_or_dir: str | Path, **hub: Any) -> Path | None:
    """The local path of a name: as :func:`named_policy`, but also of a zip, a model's folder or a model's hub id.

    For a hub id without a policy only the files that identify it are fetched.
    """
    check_settings("loading from the hub has", hub, HUB_OPTIONS, keywords=True)
    found, name = find_policy(name_or_dir), str(name_or_dir)
    if found is not None:
        return found
    if os.path.exists(name) and name not in BACKBONES:
        return Path(name_or_dir)
    if looks_like_path(name_or_dir) or name.endswith(".zip"):
        kind = "file" if name.endswith(".zip") else "folder"
        raise WeightsError(f"no such {kind}: {name}", "name a policy's folder, a hub id 'owner/name', or 'emoji'")
    return _downloaded(name, **hub) if "/" in name else None


def no_policy(name: str | Path, place: Path) -> WeightsError:
    """The error for a path that exists and holds no policy: what it holds, and what to pass instead."""
    if os.path.isfile(place):
        how = f"load it with {ZIP_IMPORT}({str(name)!r}, trust=True)" if is_zip(place) else "name its folder"
        return WeightsError(f"{name} is a file, and a policy is a folder", how)
    if backbone_in(place) is not None:
        return WeightsError(
            f"{name} is a model (a diffusers pipeline) and holds no policy",
            f"pass a policy with it: AdaptivePipeline.from_pretrained({str(name)!r}, policy='fixed:20')",
        )
    return WeightsError(
        f"{name} holds no policy: neither it nor its folder 'policy' has a {WEIGHTS_FILE}",
        "name a folder that train_sb3.py or save_pretrained wrote",
    )


def is_zip(path: str | Path) -> bool:
    """Whether a path is that of a zip, as Stable-Baselines3 saves models."""
    return os.path.isfile(path) and (str(path).endswith(".zip") or zipfile.is_zipfile(path))


def _downloaded(repo_id: str, **hub: Any) -> Path:
    try:
        return Path(snapshot_download(repo_id, allow_patterns=list(FILES), **hub))
    except Exception as error:  # offline it is an OSError or the HTTP library's own kind, by version
        cache = Path(hub["cache_dir"]) / repo_folder(repo_id).name if hub.get("cache_dir") else None
        raise unavailable(repo_id, [], reason_of(error), cache) from error


def policy_card(details: PolicyConfig) -> ModelCard:
    """The card, from ``templates/policy_card.md``: description, usage, measured results and training provenance."""
    backbone, results = str(details.environment.get("backbone", EnvSettings.backbone)), details.results
    measured_here: dict[str, Any] = {"eval_results": eval_results(results)} if results else {}
    frontier = [(f"{cost_per_nfe:.4g}", f"{nfe:.2f}") for cost_per_nfe, nfe in details.frontier]
    return ModelCard.from_template(
        ModelCardData(model_name=f"addiffusion-{backbone}", **CARD_DATA, **measured_here),
        template_path=str(TEMPLATES / "policy_card.md"),
        backbone=backbone,
        details=details,
        results=results,
        measured=measured(results["rows"]) if results else "",
        frontier=markdown_table(("cost_per_nfe", "mean NFE"), frontier) if frontier else "",
        environment=json.dumps(dict(details.environment), indent=2),
    )


def measured(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as a table, with 95 % intervals where they were computed."""
    shown = [name for name in COLUMNS if any(row.get(name) for row in rows)]
    body = [(row["sampler"], *(figure(row.get(name)) for name in shown)) for row in rows]
    return markdown_table(("sampler", *(COLUMNS[name] for name in shown)), body)


def figure(value: Mapping[str, Any] | None) -> str:
    """A number with its interval.

    >>> figure({"estimate": 0.958, "low": 0.944, "high": 0.969}), figure({"estimate": 6.42}), figure(None)
    ('0.958 [0.944, 0.969]', '6.42', '')
    """
    if not value:
        return ""
    if value.get("low") is None:
        return f"{value['estimate']:.4g}"
    return f"{value['estimate']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def eval_results(results: Mapping[str, Any]) -> list[EvalResult]:
    """The policy's results (from its first row) in the hub's metadata format."""
    first = results["rows"][0]
    return [
        EvalResult(
            task_type="text-to-image",
            dataset_type=results.get("dataset", "prompts"),
            dataset_name=results["about"].split(".")[0],
            metric_type=name,
            metric_name=f"{COLUMNS[name]} ({first['sampler']})",
            metric_value=first[name]["estimate"],
            source_name=results["command"],
            source_url="https://pypi.org/project/addiffusion-env/",
        )
        for name in COLUMNS
        if first.get(name)
    ]
