"""The model card of a policy, which travels with it to the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from addiffusion_env.agents.policy_file import PolicyConfig
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.pages import TEMPLATES, markdown_table

CARD_FILE = "README.md"
CARD_DATA: Mapping[str, Any] = {
    "library_name": "addiffusion",
    "license": "apache-2.0",
    "pipeline_tag": "text-to-image",
    "tags": ["reinforcement-learning", "stable-baselines3", "adaptive-inference"],
}
COLUMNS = {"correct": "correct", "nfe": "NFE", "preference": "preference", "seconds": "seconds"}
"""Figure -> its heading in the card's table."""


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
