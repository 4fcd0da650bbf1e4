"""`check NAME`: finds a component by name, loads its smallest variant that runs here, and checks its contracts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from addiffusion_env import ENVIRONMENTS
from addiffusion_env.backbones import BACKBONES, traits_of
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.solvers import SOLVERS
from addiffusion_env.checks import FINDERS, TINY
from addiffusion_env.checks.backbones import BACKBONE_CONTRACTS
from addiffusion_env.checks.base import each
from addiffusion_env.checks.methods import SAMPLER_CONTRACTS, SamplerCase
from addiffusion_env.checks.observations import OBSERVATION_CONTRACTS
from addiffusion_env.checks.prompts import PROMPT_CONTRACTS
from addiffusion_env.checks.rewards import REWARD_CONTRACTS
from addiffusion_env.checks.scorers import SCORER_CONTRACTS
from addiffusion_env.checks.solvers import SOLVER_CONTRACTS
from addiffusion_env.envs.settings import EnvSettings, load_backbone, load_scorers
from addiffusion_env.errors import ConfigError, unknown
from addiffusion_env.observations import FEATURES
from addiffusion_env.prompts import PROMPT_SOURCES
from addiffusion_env.rewards import TERMS
from addiffusion_env.samplers import SAMPLERS, make_sampler
from addiffusion_env.scorers import SCORERS
from addiffusion_env.scorers.image_scores import ImageScorers

EMOJI_SCORERS = {"clip": "clip", "emoji_preference": "preference", "dino": "dino"}
"""Scorer -> the corresponding part of the emoji world: same class, weights in the package."""


@dataclass(frozen=True)
class Found:
    """A component with the given name.

    Attributes:
        kind: ``"backbone"``, ``"scorer"`` ...
        how: description of the model that it is checked on; may be empty.
        run: runs the checks; yields each promise that holds.
    """

    kind: str
    how: str
    run: Callable[[], Iterator[str]]


def find(name: str) -> list[Found]:
    """All components with a name: names may repeat between kinds.

    Args:
        name: name of an environment, backbone, solver, scorer, reward term, observation key, prompt source, benchmark,
            metric or sampler; a sampler may be a whole specification (``"fixed:8"``).

    Raises:
        UnknownNameError: for an unknown name, with the nearest one.
    """
    finders = (_environment, _backbone, _scorer, _term, _key, _source, _solver, *map(FINDERS.load, FINDERS), _sampler)
    found = [one for finder in finders if (one := finder(name)) is not None]
    if not found:
        registries = (ENVIRONMENTS, BACKBONES, SCORERS, TERMS, FEATURES, PROMPT_SOURCES, SOLVERS, SAMPLERS)
        raise unknown("name", name, dict.fromkeys(known for registry in registries for known in registry))
    return found


def tiny_models() -> dict[str, Callable[[Path], Any]]:
    """The contents of all collections of :data:`~addiffusion_env.checks.TINY`."""
    return {name: build for collection in TINY for name, build in TINY.load(collection).items()}


def emoji_world() -> tuple[Backbone, ImageScorers]:
    """The embedded backbone and its scorers."""
    backbone = load_backbone(EnvSettings())
    return backbone, load_scorers(backbone)


def _environment(name: str) -> Found | None:
    def run() -> Iterator[str]:
        import gymnasium

        from addiffusion_env.checks.environments import ENVIRONMENT_CONTRACTS

        yield from each(ENVIRONMENT_CONTRACTS, gymnasium.make(name).unwrapped)

    return Found("environment", "", run) if name in ENVIRONMENTS else None


def _backbone(name: str) -> Found | None:
    if name not in BACKBONES:
        return None
    tiny = tiny_models().get(name)

    def run() -> Iterator[str]:
        with tempfile.TemporaryDirectory() as folder:
            backbone = tiny(Path(folder)) if tiny else BACKBONES.load(name).from_pretrained()
            yield from each(BACKBONE_CONTRACTS, backbone)

    return Found("backbone", "tiny random weights in the real classes" if tiny else "", run)


def _scorer(name: str) -> Found | None:
    if name not in SCORERS:
        return None
    part = EMOJI_SCORERS.get(name)

    def run() -> Iterator[str]:
        scorer = SCORERS.load(name).from_pretrained() if part is None else getattr(emoji_world()[1], part)
        yield from each(SCORER_CONTRACTS, scorer)

    return Found("scorer", "" if part is None else "the emoji world's weights", run)


def _term(name: str) -> Found | None:
    if name not in TERMS:
        return None
    return Found("reward term", "", lambda: each(REWARD_CONTRACTS, TERMS.load(name)))


def _key(name: str) -> Found | None:
    if name not in FEATURES:
        return None
    return Found("observation key", "", lambda: each(OBSERVATION_CONTRACTS, FEATURES.load(name)))


def _source(name: str) -> Found | None:
    if name not in PROMPT_SOURCES:
        return None

    def run() -> Iterator[str]:
        kind = PROMPT_SOURCES.load(name)
        if name != "text_file":
            yield from each(PROMPT_CONTRACTS, kind())
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "prompts.txt"
            path.write_text("a dog\na red cup\n# a comment\na bus left of a bear\n", encoding="utf-8")
            yield from each(PROMPT_CONTRACTS, kind(path))

    return Found("prompt source", "a file of three prompts" if name == "text_file" else "", run)


def _solver(name: str) -> Found | None:
    return Found("solver", "", lambda: each(SOLVER_CONTRACTS, SOLVERS.load(name))) if name in SOLVERS else None


def _sampler(name: str) -> Found | None:
    bare, colon, _ = name.partition(":")
    if bare not in SAMPLERS:
        return None
    backbone, spec = getattr(SAMPLERS.load(bare), "example", ("emoji", ""))
    spec = name if colon else spec
    embedded = traits_of(backbone).embedded
    on = "the emoji world" if embedded else f"tiny random weights of {backbone}"

    def run() -> Iterator[str]:
        if not spec:
            raise ConfigError(
                f"sampler {bare!r} needs arguments", f"write the full specification: {SAMPLERS.load(bare).usage}"
            )
        if colon:
            make_sampler(name)  # reports an invalid specification before a model is loaded
        with tempfile.TemporaryDirectory() as folder:
            model, scorers = emoji_world()
            if not embedded:
                model = tiny_models()[backbone](Path(folder))
            weights = Path(folder) / "own"
            if "FOLDER" in spec:
                tiny_models()[bare](weights)
            yield from each(SAMPLER_CONTRACTS, SamplerCase(spec.replace("FOLDER", str(weights)), model, scorers))

    return Found("sampler", f"{spec or name} on {on}", run)
