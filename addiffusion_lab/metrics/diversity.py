"""How different a sampler's images of one prompt are: mean distance of DINO embeddings over seeds.

python -m addiffusion_lab.metrics.diversity emoji emoji_rule fixed:50 --prompts 48 --seeds 4

A sampler that checks its images keeps those that its scorer likes, which may make them alike. Images of one prompt
are compared with each other, not with a reference set, so this is not a metric of :data:`.METRICS`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from addiffusion_env import AdaptivePipeline
from addiffusion_env.config import friendly
from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.statistics import t_interval
from addiffusion_env.pages import markdown_table
from addiffusion_env.prompts.emoji_grammar import EmojiPrompts


def diversity(embeddings: np.ndarray) -> np.ndarray:
    """(P,) mean cosine distance between the images of each prompt, in [0, 2].

    Args:
        embeddings: (P, S, D) unit vectors of S images of each of P prompts.

    Raises:
        ConfigError: for fewer than two images of a prompt.

    >>> diversity(np.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])).tolist()
    [1.0, 0.0]
    """
    seeds = embeddings.shape[1]
    if seeds < 2:
        raise ConfigError(f"diversity compares the images of a prompt, got {seeds} of each", "give at least two seeds")
    similar = np.einsum("psd,ptd->pst", embeddings, embeddings)
    first, second = np.triu_indices(seeds, 1)
    distances: np.ndarray = 1 - similar[:, first, second].mean(1)
    return distances


def measured(policy: str, prompts: Sequence[Any], seeds: int, dino: Any) -> tuple[np.ndarray, float]:
    """(P,) diversity of a policy's images, and its mean NFE."""
    pipe: Any = AdaptivePipeline.from_pretrained("emoji", policy=policy)
    every = [prompt for prompt in prompts for _ in range(seeds)]
    out = pipe(every, seeds=list(range(seeds)) * len(prompts), output_type="pt")
    found = dino.embed_images(out.images * 2 - 1)
    return diversity(found.reshape(len(prompts), seeds, -1).double().numpy()), float(np.mean(out.nfe))


@friendly
def main(arguments: Sequence[str] | None = None) -> None:
    """Draws the images of each policy and prints a table; differences are paired by prompt, to the last policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policies", nargs="+", help="specifications or names; the last one is the reference")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--prompt-seed", type=int, default=2027)
    options = parser.parse_args(arguments)
    from addiffusion_env.backbones.emoji import WEIGHTS, verify
    from addiffusion_env.scorers.dino import DinoEmbedder

    torch.set_num_threads(1)
    prompts = EmojiPrompts("test").take(options.prompts, seed=options.prompt_seed)
    dino = DinoEmbedder.from_pretrained(verify(WEIGHTS, "dino"), device="cpu")
    found = {policy: measured(policy, prompts, options.seeds, dino) for policy in options.policies}
    reference = found[options.policies[-1]][0]
    rows = []
    for policy, (values, nfe) in found.items():
        difference = "" if values is reference else str(t_interval(values - reference, 0.95))
        rows.append((policy, f"{nfe:.2f}", str(t_interval(values, 0.95)), difference))
    print(markdown_table(("policy", "NFE", "diversity", f"difference to {options.policies[-1]}"), rows))


if __name__ == "__main__":
    main()
