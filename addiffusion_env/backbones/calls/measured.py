"""Measures a pipeline when it is wrapped, by running a few of its first steps, alone and joined."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from addiffusion_env.backbones.calls.arguments import PipelineArguments
from addiffusion_env.backbones.calls.evaluator import Evaluator
from addiffusion_env.backbones.calls.guards import kept_precision, pipeline_errors
from addiffusion_env.backbones.calls.joining import CONSTANT
from addiffusion_env.backbones.calls.latent_layout import LatentLayout, learn_layout
from addiffusion_env.backbones.calls.networks import warn_not_joined
from addiffusion_env.backbones.calls.open_call import AtDecode, AtStep, NetworkRequest
from addiffusion_env.backbones.calls.recording import flattened, same
from addiffusion_env.backbones.calls.requests import CallRequest, Evaluation
from addiffusion_env.errors import CapabilityError

PROMPTS = ("a photo of a red cup", "a photo of a blue dog", "two dogs on the grass left of a large red bus in the snow")
"""The first two have equally many words, the third more: this detects networks that read one row for all images."""

PROBE_STEPS = 4
"""Steps of the measured calls, unless the pipeline's default is fewer: some schedulers do not support fewer steps, and
some distilled models do not support more."""

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Tolerated relative difference of a joined call in full precision; rounding in half precision is larger."""

HALF_TOLERANCE = 3e-2


@dataclass(frozen=True)
class Guidance:
    """The meaning of a pipeline's guidance scale.

    Attributes:
        name: name of the argument; ``None`` if there is none, or if it has no effect.
        own: the pipeline's default scale, in the engine's notation (1 is no guidance).
        added: whether the argument is added to 1 (``cond + g (cond - uncond)``).
        rows: network rows per evaluation, (without guidance, with guidance).
    """

    name: str | None
    own: float
    added: bool
    rows: tuple[int, int]

    def scale(self, argument: float) -> float:
        """Converts a pipeline's guidance argument to the engine's scale."""
        return max(1.0, argument + 1 if self.added else argument)

    def argument(self, scale: float) -> float:
        """Converts an engine's scale to the pipeline's guidance argument."""
        return scale - 1 if self.added else scale

    def argument_for(self, request: CallRequest, scale: float) -> float | None:
        """Converts an engine's scale to the pipeline's argument; ``None`` if it equals the request's own."""
        if self.name is None:
            return None
        given = request.arguments.get(self.name)
        own = self.scale(float(given)) if isinstance(given, int | float) else self.own
        return None if scale == own else self.argument(scale)


@dataclass(frozen=True)
class Measurements:
    """The measured properties of a pipeline.

    Attributes:
        request: the request that was measured.
        guidance: meaning of its guidance scale.
        layout: layout of its latents.
        image_size: (height, width) of its images.
        decoder: the module that decodes; ``None`` if latents are pixels.
        dtype: precision of its latents.
        device: device of its latents.
        prompt_sites: for each prompt-conditioned network site, the index of the conditioned branch.
        difference: largest relative difference of joined calls.
    """

    request: CallRequest
    guidance: Guidance
    layout: LatentLayout
    image_size: tuple[int, int]
    decoder: Any
    dtype: torch.dtype
    device: torch.device
    prompt_sites: dict[tuple[str, int], int]
    difference: float

    @property
    def decoder_name(self) -> str:
        """Class and precision of the decoder."""
        precision = str(getattr(self.decoder, "dtype", self.dtype)).removeprefix("torch.")
        return f"{'the pipeline' if self.decoder is None else type(self.decoder).__name__} in {precision}"


def generator() -> torch.Generator:
    """The noise generator of measured calls."""
    return torch.Generator().manual_seed(0)


def measure(evaluator: Evaluator) -> Measurements:
    """Measures a pipeline by running a few of its first steps.

    Raises:
        CapabilityError: for a pipeline that cannot be driven step by step.
        ConfigError: for arguments that the pipeline refuses.
    """
    arguments = evaluator.arguments
    steps = probe_steps(arguments)
    requests = [CallRequest(arguments.call(prompt, steps)) for prompt in PROMPTS]
    first = requests[0]
    for request in requests:
        request.rng_state = generator().get_state()  # some pipelines draw from torch's own generator
    with pipeline_errors(evaluator.pipe, "a first step", first.arguments):
        alone = first_step(evaluator, first)
    learn_axes(evaluator, first, alone)
    guidance = measure_guidance(evaluator, first, alone)
    sites = prompt_sites(alone, first_step(evaluator, requests[1]), evaluator)
    difference = check_joining(evaluator, requests, guidance)
    sample = alone[0].sample
    with pipeline_errors(evaluator.pipe, "the end of a call", first.arguments):
        layout, size, decoder = measure_decoding(evaluator, first, sample)
    return Measurements(first, guidance, layout, size, decoder, sample.dtype, sample.device, sites, difference)


def probe_steps(arguments: PipelineArguments) -> int:
    """:data:`PROBE_STEPS`, or as many more as a low ``strength`` needs to leave one of them."""
    strength = arguments.value("strength")
    needed = math.ceil(1 / max(float(strength), 1e-3)) if isinstance(strength, numbers.Real) else 1
    return min(max(PROBE_STEPS, needed), arguments.steps)


FirstStep = tuple[AtStep, list[tuple[NetworkRequest, Any]]]
"""The arguments of a call's first scheduler step, and the network requests before it with their outputs."""


def first_step(evaluator: Evaluator, request: CallRequest, scale: float | None = None) -> FirstStep:
    """The first evaluation of a new call, not joined with others."""
    call = evaluator.open_call(request, scale, generator())
    found = evaluator.run(call)
    call.close()
    return found


def learn_axes(evaluator: Evaluator, request: CallRequest, alone: FirstStep) -> None:
    """Determines which axes are batch axes; if that fails, nothing is joined."""
    ways: list[dict[str, Any]] = [{"prompt": [request.arguments.get("prompt")] * 2}]
    if "num_images_per_prompt" in evaluator.arguments.parameters:
        ways.insert(0, {"num_images_per_prompt": 2})
    for way in ways:
        try:
            _, pair = first_step(evaluator, CallRequest({**request.arguments, **way}))
        except Exception:  # some pipelines cannot draw two images in one of these ways
            continue
        evaluator.networks.learn(alone[1], pair)
        return
    evaluator.networks.joins = False


def measure_guidance(evaluator: Evaluator, request: CallRequest, alone: FirstStep) -> Guidance:
    """Determines at which scale guidance is off, what it costs, and whether the scale is added to 1."""
    name = evaluator.arguments.guidance_name
    own = evaluator.arguments.value(name) if name else None
    none = Guidance(None, 1.0, False, (alone[0].rows, alone[0].rows))
    if name is None or not isinstance(own, int | float):
        return none
    try:
        (one, called), (four, guided) = (first_step(evaluator, request, scale) for scale in (1.0, 4.0))
    except Exception:
        return none
    try:
        zero, _ = first_step(evaluator, request, 0.0)
    except Exception:  # some pipelines refuse it
        zero = one
    for scale, found in ((1.0, (one, called)), (4.0, (four, guided))):
        if any(evaluator.networks.sites.get(asked.form) is None for asked, _ in found[1]):
            # Calls with and without guidance differ in form; each form is learned once.
            learn_axes(evaluator, CallRequest({**request.arguments, name: scale}), found)
    plain = min(one.rows, zero.rows)
    if four.rows == plain:
        takes_effect = name == "guidance_scale" and not torch.equal(one.output, four.output)
        return Guidance(name if takes_effect else None, max(1.0, float(own)), False, (plain, plain))
    added = one.rows > plain and abs(prompt_weight(evaluator, request, 3.0) - 4) < 0.1
    made = Guidance(name, 1.0, added, (plain, four.rows))
    return replace(made, own=made.scale(float(own)))


def prompt_weight(evaluator: Evaluator, request: CallRequest, scale: float) -> float:
    """Largest weight of a row of the network's output in the scheduler's input, for linear guidance."""
    weight, row, rows = 0.0, 0, 1
    while row < min(rows, 16):
        output, rows = response(evaluator, request, scale, row)
        weight, row = max(weight, abs(float(output.float().mean()))), row + 1
    return weight


def response(evaluator: Evaluator, request: CallRequest, scale: float | None, ones: int | None) -> tuple[Tensor, int]:
    """The scheduler's input in a first step when the network returns zeros, with ones in some rows.

    Args:
        evaluator: evaluator of the pipeline.
        request: request whose first step is run.
        scale: the pipeline's guidance argument.
        ones: row of the step's network calls that is all ones; -1 for every row, ``None`` for none.

    Returns:
        (``model_output`` argument of the scheduler, number of rows).
    """
    call = evaluator.open_call(request, scale, generator())
    seen = 0
    while (asked := call.request) is not None:
        answer = evaluator.networks.blank_answer(asked)
        leaves, structure = flattened(answer)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        # Each entry of its only tensor belongs to a row; of several, each tensor.
        rows = list(tensors[0]) if len(tensors) == 1 else tensors
        made = [torch.full_like(row, float(ones in (-1, seen + at))) for at, row in enumerate(rows)]
        parts = iter([torch.stack(made)] if len(tensors) == 1 else made)
        seen += len(rows)
        call.answer(tree_unflatten([next(parts) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure))
    assert isinstance(call.event, AtStep)
    output = call.event.output
    call.close()
    return output, seen


def prompt_sites(a: FirstStep, b: FirstStep, evaluator: Evaluator) -> dict[tuple[str, int], int]:
    """The calls, and their branches, that differ between two prompts with the same noise."""
    found: dict[tuple[str, int], int] = {}
    for (first, _), (second, _) in zip(a[1], b[1], strict=False):
        site = evaluator.networks.sites.get(first.form)
        if site is None:
            continue
        pairs = zip(site.inputs.parts(first.inputs), site.inputs.parts(second.inputs), strict=True)
        differ = {row for (kind, one), (_, two) in pairs for row in _rows_that_differ(kind, one, two)}
        if differ:
            found[first.site] = max(differ)
    return found


def _rows_that_differ(kind: int | str, one: Any, two: Any) -> Iterator[int]:
    if kind == CONSTANT:
        return
    if isinstance(kind, int):
        if one.shape != two.shape:
            yield from range(one.shape[kind])
            return
        one, two = one.unbind(kind), two.unbind(kind)
    yield from (row for row, pair in enumerate(zip(one, two, strict=False)) if not same(*pair))


def check_joining(evaluator: Evaluator, requests: Sequence[CallRequest], guidance: Guidance) -> float:
    """Compares joined evaluations of different prompts at different noise levels with separate ones.

    Calls that differ by more than the tolerance are not joined from then on; a warning says so.

    Returns:
        The largest relative difference among the calls that are joined.
    """
    if not evaluator.networks.joins:
        warn_not_joined(evaluator.pipe, "the pipeline itself cannot draw two images at once with these arguments")
        return 0.0
    evaluations = [
        at_index(evaluator, request, None, index) for request, index in zip(requests, (0, 2, 1), strict=True)
    ]
    alone = [evaluator.evaluate([evaluation])[0].output for evaluation in evaluations]
    limit = TOLERANCE.get(alone[0].dtype, HALF_TOLERANCE)
    difference = _joined_difference(evaluator, evaluations, alone)
    if not difference <= limit:
        evaluator.networks.joins = False
        warn_not_joined(
            evaluator.pipe,
            f"the network's output depends on the number of images in a call (relative difference {difference:.2g}, "
            f"{limit:.0e} is allowed)",
        )
        return 0.0
    if guidance.name is None or guidance.rows[0] == guidance.rows[1]:
        return difference
    off = guidance.argument(1.0)
    mixed = [evaluations[0], at_index(evaluator, requests[1], guidance.argument(4.0), 2)]
    mixed.append(at_index(evaluator, requests[1], off, 1))
    apart = [alone[0], *(evaluator.evaluate([evaluation])[0].output for evaluation in mixed[1:])]
    uneven = _joined_difference(evaluator, mixed, apart)
    if not uneven <= limit:
        evaluator.networks.uneven = False
        uneven = 0.0
    return max(difference, uneven)


def at_index(evaluator: Evaluator, request: CallRequest, scale: float | None, index: int) -> Evaluation:
    """An evaluation of a request's own noise at an index of its plan."""
    x, _ = evaluator.drawn(request, scale, generator())
    plan = request.plan
    assert plan is not None
    index = min(index, len(plan.times) - 1)
    sigma = plan.convention.scheduler_sigma(float(plan.levels[index]))
    return Evaluation(request, scale, index, plan.times[index], sigma, x)


def _joined_difference(evaluator: Evaluator, evaluations: Sequence[Evaluation], alone: Sequence[Tensor]) -> float:
    try:
        joined = [found.output for found in evaluator.evaluate(evaluations)]
    except (RuntimeError, ValueError, TypeError, IndexError):
        for evaluation in evaluations:
            evaluation.request.waiting.clear()
        return math.inf
    worst = 0.0
    for mine, other in zip(joined, alone, strict=True):
        worst = max(worst, float((mine - other).abs().max() / other.abs().max().clamp_min(1e-12)))
    return worst


def measure_decoding(
    evaluator: Evaluator, request: CallRequest, inner: Tensor
) -> tuple[LatentLayout, tuple[int, int], Any]:
    """The layout of the latents, (height, width) of an image, and the module that decodes."""
    decoder: list[Any] = []
    # An inpainting pipeline decodes its image, not the latents, outside the mask: the layout needs a full mask.
    mask = request.arguments.get("mask_image")
    more = {} if mask is None else {"mask_image": full_mask(mask)}

    def decoded(x: Tensor) -> Tensor:
        call = evaluator.open_call(request, None, generator(), **more)
        evaluator.blank_step(call)
        event = call.finish(x)
        if isinstance(event, AtDecode):
            decoder[:] = [event.module]
            found = event.latents
        else:
            found = torch.empty(0)
        call.close()
        return found

    with kept_precision(evaluator.pipe):
        layout = learn_layout(inner, decoded)
    image = image_of(evaluator.finish([(request, inner)])[0])
    return layout, (int(image.shape[-2]), int(image.shape[-1])), decoder[0] if decoder else None


def full_mask(mask: Any) -> Any:
    """A mask of the same kind and size (PIL image, array, tensor, or a list of these) that covers the whole image."""
    if isinstance(mask, list):
        return [full_mask(entry) for entry in mask]
    return mask.point(lambda _: 255) if hasattr(mask, "point") else 0 * mask + 1


def image_of(output: Any) -> Tensor:
    """A pipeline's first image, (1, 3, H, W) float32 in [-1, 1]; all NaN if it could not be decoded.

    Raises:
        CapabilityError: for an output without images.
    """
    import numpy as np

    images = getattr(output, "images", getattr(output, "image", None))
    if images is None and isinstance(output, tuple | list):
        images = output[0]
    if images is None:
        raise CapabilityError(
            f"the pipeline returned {type(output).__name__} without images",
            "pass a text-to-image pipeline: video and audio pipelines are not supported",
        )
    if isinstance(images, Tensor):
        found = images[:1].float()
    else:
        array = np.asarray(images[0])
        if array.dtype == np.uint8:
            array = array.astype(np.float32) / 255
        found = torch.from_numpy(np.ascontiguousarray(array)).float().permute(2, 0, 1)[None]
    if found.ndim == 4 and found.shape[1] == 4:
        # Layers with transparency are composed on white.
        found = found[:, :3] * found[:, 3:] + (1 - found[:, 3:])
    if found.ndim != 4 or found.shape[1] != 3:
        raise CapabilityError(
            f"the pipeline returned images of shape {tuple(found.shape)}, expected (B, 3, H, W)",
            "video and audio pipelines are not supported",
        )
    return found.clamp(0, 1) * 2 - 1
