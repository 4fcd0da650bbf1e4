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
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.evaluation.collapse import describe
from addiffusion_env.evaluation.films import Film, draw_film
from addiffusion_env.evaluation.runner import png_bytes
from addiffusion_env.evaluation.study.arms import Arm
from addiffusion_env.evaluation.study.claims import Claim
from addiffusion_env.evaluation.study.page import table
from addiffusion_env.evaluation.study.policies import Variant, play
from addiffusion_env.prompts.base import Prompt
from addiffusion_env.rewards.composite import make_reward
from addiffusion_env.rollouts.regret import regret
from addiffusion_env.rollouts.table import TryTable


def seeds_table(per_seed: Mapping[int, Sequence[Claim]]) -> list[str]:
    """Which claims each training seed meets, with the first line of each."""
    rows = [
        (seed, claim.name, "yes" if claim.holds else "not in full", claim.lines[0])
        for seed, claims in per_seed.items()
        for claim in claims
    ]
    return table(("seed", "claim", "holds", "figures"), rows)


def collapse_table(
    test: TryTable,
    every: Mapping[str, Variant],
    folders: Mapping[str, Path],
    arms: Mapping[str, Sequence[Arm]],
    price: float,
) -> list[str]:
    """How much each policy does the same for every prompt, and its regret at a price, in utility of the reward."""
    rows = []
    for name, variant in every.items():
        outcomes = play(folders[name], variant, test, [price])[0]
        kinds = Counter(outcomes.actions)
        commonest, times = kinds.most_common(1)[0]
        share = times / len(test)
        found = regret(test, outcomes, make_reward(_reward(every, folders)), price)
        entropy = -sum(n / len(test) * np.log2(n / len(test)) for n in kinds.values())
        rows.append(
            (
                name,
                f"{outcomes.nfe.mean():.2f}",
                f"{entropy:.2f}",
                f"{share:.0%}: {describe(commonest)}",
                "**yes**" if share >= 0.95 or entropy <= 0.3 else "no",
                f"{found.to_constant:+.3f} ({found.best_constant})",
                f"{found.to_oracle:+.3f}",
            )
        )
    head = ("policy", "mean NFE", "entropy of behaviour, bits", "commonest", "collapsed", "regret to best constant",
            "to oracle")  # fmt: skip
    return table(head, rows)


def _reward(every: Mapping[str, Variant], folders: Mapping[str, Path]) -> Mapping[str, object] | str:
    from addiffusion_env.agents.policy_file import load_config

    return EnvSettings.of(**load_config(folders[next(iter(every))]).environment).reward


def films(folder: Path, prompts: Sequence[Prompt], docs: Path) -> list[str]:
    """Film strips of a policy on some prompts, played by the engine; Markdown that shows them."""
    method = LearnedMethod.from_run(folder, price=0.004)
    settings = method.settings()
    backbone = load_backbone(settings)
    scorers = load_scorers(backbone, settings.scorers)
    method.bind(backbone, scorers)
    process = method.process(settings.process(backbone.capabilities, backbone.name))
    engine = Engine(backbone, scorers, solver=process.solver, decider=method.decide)
    episodes = engine.run([method.program(backbone, process, prompt, 0, keep_strip=True) for prompt in prompts])
    strips: list[np.ndarray] = []
    lines: list[str] = []
    for prompt, episode in zip(prompts, episodes, strict=True):
        frames = (*(png_bytes(pixels) for pixels in episode.strip), png_bytes(episode.picture.pixels()))
        preferences = (*episode.preferences[1:], float(episode.picture.look.preference[0]))
        strips.append(draw_film(Film("", "policy", "", frames, tuple(episode.lane.actions), preferences)))
        lines.append(f"{len(lines) + 1}. {prompt.text}: {describe(episode.lane.actions)}, {episode.lane.nfe:g} NFE")
    width = max(strip.shape[1] for strip in strips)
    padded = [np.pad(s, ((0, 6), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips]
    docs.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(padded)).save(docs / "films.png")
    caption = "A frame is the preview that an action led to, with its preference; the last is the picture given."
    return ["![film strips](films.png)", "", caption, "", *lines]
