"""Parts of the page that look at single policies: seeds, collapse, film strips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from addiffusion_env.agents.learned import LearnedMethod
from addiffusion_env.engine.engine import Engine
from addiffusion_env.envs.loading import load_backbone, load_scorers
from addiffusion_env.evaluation.collapse import CollapseLimits, describe, entropy
from addiffusion_env.evaluation.films import draw_film, film_of, with_words
from addiffusion_env.evaluation.judges import Judges
from addiffusion_env.prompts.base import Prompt
from addiffusion_env.rewards.composite import Reward
from addiffusion_env.tabular.regret import regret
from addiffusion_env.tabular.table import AttemptTable
from addiffusion_lab.study.claims import Claim
from addiffusion_lab.study.page import table
from addiffusion_lab.study.policies import Variant, play


def seeds_table(per_seed: Mapping[int, Sequence[Claim]]) -> list[str]:
    """Which claims each training seed meets, with the first line of each."""
    rows = [
        (seed, claim.name, "yes" if claim.holds else "not in full", claim.lines[0])
        for seed, claims in per_seed.items()
        for claim in claims
    ]
    return table(("seed", "claim", "holds", "figures"), rows)


def collapse_table(
    test: AttemptTable,
    every: Mapping[str, Variant],
    folders: Mapping[str, Path],
    reward: Reward,
    price: float,
) -> list[str]:
    """How much each policy does the same for every prompt, and its regret at a price, in utility of the reward."""
    rows, limits = [], CollapseLimits()
    for name, variant in every.items():
        outcomes = play(folders[name], variant, test, [price])[0]
        kinds = Counter(outcomes.actions)
        commonest, times = kinds.most_common(1)[0]
        share = times / len(test)
        found = regret(test, outcomes, reward, price)
        spread = entropy(kinds.values())
        rows.append(
            (
                name,
                f"{outcomes.nfe.mean():.2f}",
                f"{spread:.2f}",
                f"{share:.0%}: {describe(commonest)}",
                "**yes**" if limits.passed(share, spread) else "no",
                f"{found.to_constant:+.3f} ({found.best_constant})",
                f"{found.to_oracle:+.3f}",
            )
        )
    head = ("policy", "mean NFE", "entropy of behaviour, bits", "commonest", "collapsed", "regret to best constant",
            "to oracle")  # fmt: skip
    return table(head, rows)


def films(folder: Path, prompts: Sequence[Prompt], docs: Path) -> list[str]:
    """Film strips of a policy on some prompts, played by the engine and judged; Markdown that shows them."""
    method = LearnedMethod.from_run(folder, price=0.004)
    settings = method.settings()
    backbone = load_backbone(settings)
    scorers = load_scorers(backbone, settings.scorers)
    method.bind(backbone, scorers)
    process = method.process(settings.process(backbone.capabilities, backbone.name))
    engine = Engine(backbone, scorers, solver=process.solver, decider=method.decide)
    episodes = engine.run([method.program(backbone, process, prompt, 0, keep_strip=True) for prompt in prompts])
    judges = Judges.of(["emoji_detector"], backbone.device)
    judgements = judges.judge([episode.picture.image for episode in episodes], prompts)
    strips: list[np.ndarray] = []
    lines: list[str] = []
    for prompt, episode, judgement in zip(prompts, episodes, judgements, strict=True):
        spent = f"{episode.lane.nfe:g} NFE"
        verdict = "right" if judgement.correct else f"wrong ({judgement.reason})"
        strips.append(with_words(draw_film(film_of("policy", "", "", episode)), f"{prompt.text}: {spent}, {verdict}"))
        lines.append(f"{len(lines) + 1}. {prompt.text}: {describe(episode.lane.actions)}, {spent}, {verdict}")
    width = max(strip.shape[1] for strip in strips)
    padded = [np.pad(s, ((0, 6), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips]
    docs.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(padded)).save(docs / "films.png")
    caption = (
        "A frame is the preview that an action led to, with its preference; the last is the picture given, as the "
        "detector judges it."
    )
    return ["![film strips](films.png)", "", caption, "", *lines]
