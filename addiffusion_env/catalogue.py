"""All registered components, with a one-line description and what they need to run on this machine."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from addiffusion_env.errors import AdDiffusionError
from addiffusion_env.registry import Registry

LISTINGS = Registry("kind of thing", more="addiffusion_lab")
"""Kind -> a function that yields further entries of it; plugins add to it."""


@dataclass(frozen=True)
class Entry:
    """One registered component.

    Attributes:
        name: its name in configurations; for a sampler its usage.
        says: a one-line description.
        needs: what is missing to run it on this machine, in a few words; empty if it runs.
    """

    name: str
    says: str
    needs: str = ""


def catalogue() -> dict[str, list[Entry]]:
    """Every kind of component -> its entries, in the order of registration; kinds added by plugins come last."""
    from addiffusion_env.backbones import BACKBONES
    from addiffusion_env.backbones.solvers import SOLVERS
    from addiffusion_env.observations import FEATURES
    from addiffusion_env.prompts import BENCHMARKS, PROMPT_SOURCES
    from addiffusion_env.rewards import TERMS
    from addiffusion_env.samplers import SAMPLERS
    from addiffusion_env.scorers import SCORERS

    backbones = list(_entries(BACKBONES))
    found = {
        "environments": list(_environments({entry.name: entry for entry in backbones})),
        "backbones": backbones,
        "prompt sources": list(_entries(PROMPT_SOURCES, [name for name in PROMPT_SOURCES if name not in BENCHMARKS])),
        "scorers": list(_entries(SCORERS)),
        "reward terms": list(_entries(TERMS)),
        "observation keys": list(_entries(FEATURES)),
        "reward presets": list(_reward_presets()),
        "refine presets": list(_refine_presets()),
        "solvers": list(_entries(SOLVERS)),
        "samplers": list(_entries(SAMPLERS)),
        # Scorers that give verdicts; other scorers can serve as judges by their scores.
        "judges": list(_entries(SCORERS, [name for name in SCORERS if hasattr(SCORERS.load(name), "verdicts")])),
    }
    for kind in LISTINGS:
        found.setdefault(kind, []).extend(LISTINGS.load(kind)())
    return found


def first_line(thing: Any) -> str:
    """The first line of a docstring, without markup and without the full stop."""
    line = (inspect.getdoc(thing) or "").strip().split("\n")[0]
    return re.sub(r":\w+:(?=`)", "", line).replace("`", "").removesuffix(".")


def _entries(registry: Registry, names: Iterable[str] | None = None) -> Iterator[Entry]:
    """The entries of registered classes and functions; those without ``needs()`` run everywhere."""
    for name in registry if names is None else names:
        kind = registry.load(name)
        needs = kind.needs() if hasattr(kind, "needs") else ""
        yield Entry(getattr(kind, "usage", name), first_line(kind), needs)


def _environments(backbones: Mapping[str, Entry]) -> Iterator[Entry]:
    from addiffusion_env import ENVIRONMENTS
    from addiffusion_env.backbones import traits_of
    from addiffusion_env.scorers import SCORERS

    for name, settings in ENVIRONMENTS.items():
        model = backbones[settings["backbone"]]
        scorers = SCORERS.load(traits_of(settings["backbone"]).preference).needs()
        needs = ", ".join(part for part in (model.needs, scorers) if part)
        steps = f"{settings['steps']} steps" if "steps" in settings else "the pipeline's own steps"
        yield Entry(name, f"{steps}. {model.says}", needs)


def _reward_presets() -> Iterator[Entry]:
    from addiffusion_env.rewards import PRESET_COSTS, PRESETS

    for name, terms in PRESETS.items():
        weights = " + ".join(f"{config.weight:g} {term}" for term, config in terms.items() if config.weight)
        yield Entry(name, f"{weights}, at a cost of {PRESET_COSTS[name]:g} per NFE")


def _refine_presets() -> Iterator[Entry]:
    from addiffusion_env.engine.process import REFINE_PRESETS

    for name, preset in REFINE_PRESETS.items():
        steps = "the schedule's steps" if preset.steps == "schedule" else f"{preset.steps} evaluations"
        says = f"{preset.region} re-noised by {preset.renoise:g}, {steps} back, keeps {preset.accept}"
        yield Entry(name, says if preset.enabled else "refine is never legal")


def lacks(attempt: Callable[[], Any], words: str) -> str:
    """``words`` if an attempt raises an :class:`AdDiffusionError`, else an empty string."""
    try:
        attempt()
    except AdDiffusionError:
        return words
    return ""


def lines(found: dict[str, list[Entry]]) -> Iterable[str]:
    """The catalogue as text: each kind, then one line per entry."""
    for kind, entries in found.items():
        yield f"\n{kind}"
        width = max(len(entry.name) for entry in entries)
        for entry in entries:
            needs = f". Needs {entry.needs}." if entry.needs else ""
            yield f"  {'no ' if entry.needs else 'yes'} {entry.name:{width}}  {entry.says}{needs}"
