"""Measures a pipeline when it is wrapped, by running a few of its first steps, alone and joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from addiffusion_env.backbones.calls.evaluator import Evaluator
from addiffusion_env.backbones.calls.guards import kept_precision, pipeline_errors
from addiffusion_env.backbones.calls.joining import Batched, BatchedList, Node
from addiffusion_env.backbones.calls.latent_layout import LatentLayout, learn_layout
from addiffusion_env.backbones.calls.networks import warn_not_joined
from addiffusion_env.backbones.calls.open_call import AtDecode, AtStep, NetworkRequest
from addiffusion_env.backbones.calls.recording import same
from addiffusion_env.backbones.calls.requests import CallRequest, Evaluation, EvaluationResult
from addiffusion_env.backbones.calls.trees import entries, tensors_in, with_tensors
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
    requests = [CallRequest(arguments.call(prompt, min(PROBE_STEPS, arguments.steps))) for prompt in PROMPTS]
    first = requests[0]
    for request in requests:
        request.rng_state = generator().get_state()  # some pipelines draw from torch's own generator
    with pipeline_errors(evaluator.pipe, "a first step", first.arguments):
        alone = first_step(evaluator, first, None)
    learn_axes(evaluator, first, alone)
    guidance = measure_guidance(evaluator, first, alone)
    sites = prompt_sites(alone, first_step(evaluator, requests[1], None), evaluator)
    difference = check_joining(evaluator, requests, guidance)
    sample = alone.step.sample
    with pipeline_errors(evaluator.pipe, "the end of a call", first.arguments):
        layout, size, decoder = measure_decoding(evaluator, first, sample)
    return Measurements(first, guidance, layout, size, decoder, sample.dtype, sample.device, sites, difference)


def first_step(evaluator: Evaluator, request: CallRequest, scale: float | None, **more: Any) -> EvaluationResult:
    """The first evaluation of a new call, not joined with others."""
    call = evaluator.open_call(request, scale, generator(), **more)
    found = evaluator.run(call)
    call.close()
    return found


def learn_axes(evaluator: Evaluator, request: CallRequest, alone: EvaluationResult) -> None:
    """Determines which axes are batch axes; if that fails, nothing is joined."""
    ways: list[dict[str, Any]] = [{"prompt": [request.arguments.get("prompt")] * 2}]
    if "num_images_per_prompt" in evaluator.arguments.parameters:
        ways.insert(0, {"num_images_per_prompt": 2})
    for way in ways:
        try:
            pair = first_step(evaluator, CallRequest({**request.arguments, **way}), None)
        except Exception:  # some pipelines cannot draw two images in one of these ways
            continue
        evaluator.networks.learn(alone.requests, pair.requests)
        return
    evaluator.networks.joins = False


def measure_guidance(evaluator: Evaluator, request: CallRequest, alone: EvaluationResult) -> Guidance:
    """Determines at which scale guidance is off, what it costs, and whether the scale is added to 1."""
    name = evaluator.arguments.guidance_name
    own = evaluator.arguments.value(name) if name else None
    if name is None or not isinstance(own, int | float):
        return Guidance(None, 1.0, False, (alone.rows, alone.rows))

    def at(scale: float) -> EvaluationResult:
        return first_step(evaluator, request, float(scale))

    try:
        one, four = at(1.0), at(4.0)
    except Exception:
        return Guidance(None, 1.0, False, (alone.rows, alone.rows))
    try:
        zero = at(0.0)
    except Exception:  # some pipelines refuse it
        zero = one
    for scale, found in ((1.0, one), (4.0, four)):
        if any(evaluator.networks.site(asked) is None for asked, _ in found.requests):
            # Calls with and without guidance differ in form; each form is learned once.
            learn_axes(evaluator, CallRequest({**request.arguments, name: scale}), found)
    plain = min(one.rows, zero.rows)
    if four.rows == plain:
        takes_effect = name == "guidance_scale" and not torch.equal(one.step.output, four.step.output)
        return Guidance(name if takes_effect else None, max(1.0, float(own)), False, (plain, plain))
    added = one.rows > plain and abs(prompt_weight(evaluator, request, 3.0) - 4) < 0.1
    made = Guidance(name, 1.0, added, (plain, four.rows))
    return Guidance(name, made.scale(float(own)), added, made.rows)


def prompt_weight(evaluator: Evaluator, request: CallRequest, scale: float) -> float:
    """Largest weight of a row of the network's output in the scheduler's input, for linear guidance."""
    weights = []
    for marked in range(16):
        call = evaluator.open_call(request, scale, generator())
        seen = 0
        while isinstance(call.event, NetworkRequest):
            asked = call.event
            answer = evaluator.networks.blank_answer(asked)
            rows = tensors_in(answer)
            count = len(rows[0]) if len(rows) == 1 else len(rows)
            if seen <= marked < seen + count:
                answer = _marked(answer, marked - seen)
            seen += count
            call.answer(answer)
        assert isinstance(call.event, AtStep)
        weights.append(float(call.event.output.float().mean()))
        call.close()
        if marked + 1 >= seen:
            break
    return max((abs(weight) for weight in weights), default=0.0)


def _marked(value: Any, row: int) -> Any:
    """An output of zeros with ones in one row: of its only tensor, or of the tensor with that index."""
    several = len(tensors_in(value)) > 1
    count = iter(range(16))

    def mark(part: Tensor) -> Tensor:
        made = torch.zeros_like(part)
        if several:
            return torch.ones_like(part) if next(count) == row else made
        made[row] = 1
        return made

    return with_tensors(value, mark)


def prompt_sites(a: EvaluationResult, b: EvaluationResult, evaluator: Evaluator) -> dict[tuple[str, int], int]:
    """The calls, and their branches, that differ between two prompts with the same noise."""
    found: dict[tuple[str, int], int] = {}
    for (first, _), (second, _) in zip(a.requests, b.requests, strict=False):
        site = evaluator.networks.site(first)
        if site is None:
            continue
        differ: set[int] = set()
        for spec, one, two in ((site.args, first.args, second.args), (site.kwargs, first.kwargs, second.kwargs)):
            differ |= _rows_that_differ(spec, one, two)
        if differ:
            found[first.site] = max(differ)
    return found


def _rows_that_differ(spec: Any, one: Any, two: Any) -> set[int]:
    if isinstance(spec, Batched):
        if one.shape != two.shape:
            return set(range(one.shape[spec.axis]))
        pairs = zip(one.unbind(spec.axis), two.unbind(spec.axis), strict=True)
        return {row for row, (a, b) in enumerate(pairs) if not torch.equal(a, b)}
    if isinstance(spec, BatchedList):
        return {row for row, (a, b) in enumerate(zip(one, two, strict=False)) if not same(a, b)}
    if isinstance(spec, Node):
        found: set[int] = set()
        for part, a, b in zip(spec.parts, entries(one) or (), entries(two) or (), strict=False):
            found |= _rows_that_differ(part, a, b)
        return found
    return set()


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
    alone = [evaluator.evaluate([evaluation])[0].step.output for evaluation in evaluations]
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
    apart = [alone[0], *(evaluator.evaluate([evaluation])[0].step.output for evaluation in mixed[1:])]
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
        joined = [found.step.output for found in evaluator.evaluate(evaluations)]
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
        evaluator.blank_step(call, call.event)
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
