"""Loading backbones and scorers, once a process: every environment of a process shares the weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from addiffusion_env.backbones import BACKBONES
from addiffusion_env.backbones.base import Backbone, Load
from addiffusion_env.backbones.traits import traits_of
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.files import stamp_of
from addiffusion_env.registry import load_object
from addiffusion_env.scorers.look import LookScorers


@lru_cache(maxsize=8)
def _backbone(name: str, name_or_path: str | None, device: str, dtype: str, options: tuple, stamps: tuple) -> Backbone:
    given = {option: value for option, _, value in options}
    return BACKBONES.load(name).from_pretrained(Load(name_or_path, device, dtype, given))


def load_backbone(settings: EnvSettings) -> Backbone:
    """The backbone of some settings; the same object for the same settings and the same files."""
    if isinstance(settings.backbone, Backbone):
        return settings.backbone
    load = settings.load()
    # Arguments of a pipeline's call may be images and tensors, which no cache can compare.
    if settings.pipe is not None or "pipeline_kwargs" in load.options:
        return _of_pipeline(settings, load)
    options = tuple(
        (name, type(value), tuple(value) if isinstance(value, list) else value)  # 16.0 is refused also after 16
        for name, value in sorted(load.options.items())
    )
    stamps = _stamps(load.name_or_path, load.options.get("preview"))
    return _backbone(settings.backbone, load.name_or_path, load.device, load.dtype, options, stamps)


def _stamps(*values: Any) -> tuple:
    """What the folders among some settings hold, so that weights written anew are loaded anew."""
    return tuple(stamp_of(value) for value in values if isinstance(value, str | Path))


def _of_pipeline(settings: EnvSettings, load: Load) -> Backbone:
    """The backbone of a loaded pipeline, or of one with arguments that no cache can compare; kept with its settings."""
    kind = BACKBONES.load(str(settings.backbone))
    for known, arguments, backbone in _PIPELINES:
        if known is settings.pipe and arguments == (load, settings.backbone_options):
            return backbone
    made = kind.from_pretrained(load) if settings.pipe is None else kind.from_pipeline(settings.pipe, **load.options)
    _PIPELINES.append((settings.pipe, (load, settings.backbone_options), made))
    del _PIPELINES[:-8]
    return made


_PIPELINES: list[tuple[object, object, Backbone]] = []
"""(pipeline, its settings, its backbone) of the last few, so that the environments of a process share them."""


@lru_cache(maxsize=8)
def _scorers(loader: str, device: str, paths: tuple, stamps: tuple) -> LookScorers:
    scorers: LookScorers = load_object(loader).load(device, dict(paths))
    return scorers


def clip_width(backbone: str, paths: Mapping[str, str] | None = None) -> int:
    """Width of the CLIP embedding of :func:`load_scorers`, without loading them.

    Args:
        backbone: its registry name.
        paths: what to take for its own scorers.

    Raises:
        UnknownNameError: for a CLIP that open_clip does not know.
        WeightsError: for a folder that holds none.
    """
    return int(load_object(traits_of(backbone).scorers).clip_width(paths or {}))


def load_scorers(backbone: Backbone, paths: Mapping[str, str] | None = None) -> LookScorers:
    """The scorers of a backbone's images, as its traits name them.

    Args:
        backbone: whose images.
        paths: what to take for its own scorers; see :attr:`EnvSettings.scorers`.

    Raises:
        ConfigError: for paths that these scorers do not take.
        WeightsError: when a scorer cannot be had.
    """
    given = tuple(sorted((paths or {}).items()))
    return _scorers(backbone.traits.scorers, str(backbone.device), given, _stamps(*(paths or {}).values()))
