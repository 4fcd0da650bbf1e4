"""Contracts of backbones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.batches import Prediction
from addiffusion_env.checks.base import identity_is_held, refuses, require
from addiffusion_env.errors import CapabilityError, PromptError

PROMPTS = ("a photo of a dog", "a photo of a red cup")
CLOSE = 2e-3
"""Largest relative difference allowed between batch sizes: convolutions are reordered."""


def schedules_fall(backbone: Backbone) -> None:
    """A schedule of n steps is n + 1 finite noise levels, decreasing, the last one at least 0."""
    for steps in (1, backbone.capabilities.default_steps):
        found = backbone.sigmas(steps, backbone.capabilities.default_spacing)
        require(found.shape == (steps + 1,), f"sigmas({steps}) has the shape {found.shape}", "return steps + 1 levels")
        require(bool(np.isfinite(found).all() and (np.diff(found) < 0).all()), f"sigmas: {found}", "make them decrease")
        require(bool(found[-1] >= 0), f"the last noise level is {found[-1]}", "end at 0 or above")


def progress_is_bounded(backbone: Backbone) -> None:
    """timestep_position decreases from about 1 at the start to about 0 at the end."""
    start = float(backbone.sigmas(backbone.capabilities.default_steps, backbone.capabilities.default_spacing)[0])
    found = backbone.timestep_position(torch.tensor([start, start / 2, 0.0], dtype=torch.float64)).tolist()
    require(0.9 < found[0] <= 1 and 0 <= found[2] < 0.01, f"it gives {found[0]} and {found[2]}", "scale it")
    falls = found[2] <= found[1] <= found[0]
    require(falls, f"half of the noise gives {found[1]}", "make it decrease with the noise level")


def prompts_are_rows(backbone: Backbone) -> None:
    """A prompt is encoded the same alone and in a batch."""
    both = backbone.encode(list(PROMPTS))
    require(len(both) == len(PROMPTS), f"{len(PROMPTS)} prompts gave {len(both)} rows", "one row per prompt")
    for index, prompt in enumerate(PROMPTS):
        alone = backbone.encode([prompt])
        for name, value in both.row(index).tensors.items():
            _same(value, alone.tensors[name], f"conditioning {name!r} of a single prompt")


def bad_prompts_are_refused(backbone: Backbone) -> None:
    """An empty list, a bare string and a prompt beyond the text window raise PromptError."""
    refuses(PromptError, lambda: backbone.encode([]), "an empty list of prompts")
    refuses(PromptError, lambda: backbone.encode(PROMPTS[0]), "a bare string")
    long = " ".join(["dog"] * (backbone.capabilities.max_tokens + 1))
    refuses(PromptError, lambda: backbone.encode([long]), "a prompt longer than max_tokens")


def rows_have_their_own_noise_level(backbone: Backbone) -> None:
    """A batch at two noise levels equals two calls of one."""
    x, sigma = _noisy(backbone)
    both = _predict(backbone, x, sigma, PROMPTS)
    for index in range(len(PROMPTS)):
        at = slice(index, index + 1)
        alone = _predict(backbone, x[at], sigma[at], (PROMPTS[index],))
        _same(both.x0[at], alone.x0, "x0 of a single row")


def network_calls_are_counted(backbone: Backbone) -> None:
    """A guided row counts two network calls and an unguided row one, or as the capabilities declare."""
    x, sigma = _noisy(backbone)
    scale = torch.tensor([1.0, max(2.0, backbone.capabilities.default_guidance)], dtype=torch.float64)
    if not backbone.capabilities.guidance:
        scale = torch.ones(2, dtype=torch.float64)
    found = backbone.predict(x, sigma, backbone.encode(list(PROMPTS)), scale).calls.tolist()
    alone, guided = backbone.capabilities.network_calls
    wanted = [alone, guided if backbone.capabilities.guidance else alone]
    require(found == wanted, f"calls are {found}, expected {wanted}", "count the calls of the denoiser")


def guidance_moves_the_prediction(backbone: Backbone) -> None:
    """With guidance, x0 depends on its scale."""
    if not backbone.capabilities.guidance:
        return
    x, sigma = _noisy(backbone)
    plain, guided = (_predict(backbone, x, sigma, PROMPTS, scale) for scale in (1.0, 4.0))
    require(not torch.equal(guided.x0, plain.x0), "guidance 4 changes nothing", "extrapolate from the negative prompt")


def the_denoisers_features_are_rows(backbone: Backbone) -> None:
    """The denoiser's features are (B, feature_dim) finite float32, or None where there are none."""
    x, sigma = _noisy(backbone)
    found, dim = _predict(backbone, x, sigma, PROMPTS).features, backbone.capabilities.feature_dim
    if dim is None or found is None:
        require(dim is None and found is None, f"feature_dim is {dim}, features are {found}", "define both or neither")
        return
    require(tuple(found.shape) == (2, dim), f"features are {tuple(found.shape)}, expected {(2, dim)}", "correct either")
    require(found.dtype == torch.float32, f"features are {found.dtype}", "return float32")
    require(bool(torch.isfinite(found).all()), "features are not finite", "raise an error for such latents")


def attention_is_a_share(backbone: Backbone) -> None:
    """Attention maps are shares of each cell's attention; without any, asking for them raises CapabilityError."""
    x, sigma = _noisy(backbone)
    conditioning, ones = backbone.encode(list(PROMPTS)), torch.ones(2, dtype=torch.float64)
    capture = torch.tensor([False, True])
    grid = backbone.capabilities.attention_grid
    if grid is None:
        refuses(CapabilityError, lambda: backbone.predict(x, sigma, conditioning, ones, capture), "capture=True")
        return
    maps = backbone.predict(x, sigma, conditioning, ones, capture).attention
    require(maps is not None, "capture=True gave no maps", "return them or declare attention_grid=None")
    assert maps is not None
    require(tuple(maps.shape[2:]) == grid, f"maps are {tuple(maps.shape)}, the grid is {grid}", "make them agree")
    require(not bool(maps[0].any()), "a row that asked for no maps has some", "leave it at zero")
    low, total = float(maps[1].min()), float(maps[1].sum(0).max())
    require(low >= 0 and total <= 1 + 1e-2, f"shares run from {low} and add up to {total}", "softmax over tokens")


def images_are_in_range(backbone: Backbone) -> None:
    """Previews and decoded images are (B, 3, height, width) float32 in [-1, 1], of the declared sizes."""
    x0 = _noisy(backbone)[0]
    sizes = {"preview": backbone.capabilities.preview_size, "decode": backbone.capabilities.image_size}
    for name, size in sizes.items():
        found = getattr(backbone, name)(x0)
        shape = (len(x0), 3, *size)
        require(tuple(found.shape) == shape, f"{name} gives {tuple(found.shape)}, expected {shape}", "correct either")
        require(found.dtype == torch.float32, f"{name} gives {found.dtype}", "return float32")
        low, high = (float(value) for value in found.aminmax())
        require(-1 <= low <= high <= 1, f"{name} gives numbers in [{low:.3g}, {high:.3g}]", "clamp to [-1, 1]")


def records_know_it(backbone: Backbone) -> None:
    """Its identity is plain JSON, does not change with use, and changes with its weights."""
    identity_is_held(backbone, lambda: _predict(backbone, *_noisy(backbone), PROMPTS))


BACKBONE_CONTRACTS = (
    schedules_fall,
    progress_is_bounded,
    prompts_are_rows,
    bad_prompts_are_refused,
    rows_have_their_own_noise_level,
    network_calls_are_counted,
    guidance_moves_the_prediction,
    the_denoisers_features_are_rows,
    attention_is_a_share,
    images_are_in_range,
    records_know_it,
)
"""Subject: a loaded :class:`Backbone`."""


def _noisy(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Two rows of latents, and the noise levels of two different steps."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *backbone.capabilities.latent_shape, generator=generator).to(backbone.device)
    levels = backbone.sigmas(4, backbone.capabilities.default_spacing)
    return x, torch.tensor([levels[0], levels[2]], dtype=torch.float64)


def _predict(
    backbone: Backbone, x: Tensor, sigma: Tensor, prompts: tuple[str, ...], scale: float | None = None
) -> Prediction:
    guidance = backbone.capabilities.default_guidance if scale is None else scale
    scales = torch.full((len(x),), guidance, dtype=torch.float64)
    return backbone.predict(x, sigma, backbone.encode(list(prompts)), scales)


def _same(found: Tensor, wanted: Tensor, what: str) -> None:
    shapes = tuple(found.shape), tuple(wanted.shape)
    require(shapes[0] == shapes[1], f"{what}: shapes {shapes[0]}, {shapes[1]}", "mind the batch")
    if not wanted.is_floating_point():
        require(torch.equal(found, wanted), f"{what}: differs", "make rows independent")
        return
    apart = float((found - wanted).abs().max()) / max(1e-6, float(wanted.abs().max()))
    require(apart <= CLOSE, f"{what}: differs by {apart:.2g} of its size", "make rows independent")
