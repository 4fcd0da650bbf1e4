"""The model card of a policy: what it is, how to use it, what it was measured to do and by which command."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from addiffusion_env.agents.policy_file import PolicyConfig
from addiffusion_env.envs.settings import EnvSettings

COLUMNS = {"correct": "correct", "nfe": "NFE", "preference": "preference", "seconds": "seconds"}
"""Figure -> its heading in the card's table."""


def policy_card(details: PolicyConfig, data: ModelCardData) -> ModelCard:
    """Writes the card.

    Args:
        details: of the policy.
        data: licence, tags and library; results are added to a copy.
    """
    environment = details.environment
    backbone = str(environment.get("backbone", EnvSettings.backbone))
    known: dict[str, Any] = {**data.to_dict(), "model_name": f"addiffusion-{backbone}"}
    results = details.results
    if results:
        known["eval_results"] = eval_results(results)
    parts = [
        f"---\n{ModelCardData(**known).to_yaml()}\n---\n",
        f"# Adaptive inference policy for {backbone}\n",
        "A small policy for [AdDiffusion](https://pypi.org/project/addiffusion-env/): at each decision of a "
        "text-to-image model's denoising loop it looks at a cheap preview and chooses to continue, to stop or to "
        f"refine. It was trained on the backbone `{backbone}` and changes none of its weights.\n",
        "```python\nfrom addiffusion_env import AdaptivePipeline\n\n"
        'pipe = AdaptivePipeline.from_pretrained("owner/name")  # this repository\n'
        'out = pipe("a photo of a dog", seeds=0)\nprint(out.nfe, out.images[0].size)\n```\n',
        "## What it was measured to do\n",
        *(
            measured(results)
            if results
            else ["Nothing was recorded with it: run `python eval_sb3.py policy=FOLDER`.\n"]
        ),
    ]
    if details.frontier:
        parts += [
            f"Price of one NFE and the mean NFE spent at it, on {details.frontier_prompts} (`target_nfe` interpolates "
            "here):\n",
            table(("price", "mean NFE"), [(f"{price:.4g}", f"{nfe:.2f}") for price, nfe in details.frontier]),
        ]
    parts += ["## How it was made\n", described(details.provenance), "## Environment\n", fenced(environment)]
    return ModelCard("\n".join(parts))


def measured(results: Mapping[str, Any]) -> list[str]:
    """The results' table, with 95 % intervals where they were computed, and the command that measured them."""
    rows = results["rows"]
    shown = [name for name in COLUMNS if any(row.get(name) for row in rows)]
    head = ("method", *(COLUMNS[name] for name in shown))
    body = [(row["method"], *(figure(row.get(name)) for name in shown)) for row in rows]
    return [
        f"{results['about']} Measured by `{results['command']}`; intervals are 95 %.\n",
        table(head, body),
    ]


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
    """The policy's own rows (the first one is its own) in the hub's metadata."""
    first = results["rows"][0]
    return [
        EvalResult(
            task_type="text-to-image",
            dataset_type=results.get("dataset", "prompts"),
            dataset_name=results["about"].split(".")[0],
            metric_type=name,
            metric_name=f"{COLUMNS[name]} ({first['method']})",
            metric_value=first[name]["estimate"],
            source_name=results["command"],
            source_url="https://pypi.org/project/addiffusion-env/",
        )
        for name in COLUMNS
        if first.get(name)
    ]


def described(provenance: Mapping[str, Any]) -> str:
    """Provenance as a list."""
    return "\n".join(f"- {key.replace('_', ' ')}: `{value}`" for key, value in provenance.items()) + "\n"


def fenced(environment: Mapping[str, Any]) -> str:
    """The environment's settings as JSON."""
    return f"```json\n{json.dumps(dict(environment), indent=2)}\n```\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
