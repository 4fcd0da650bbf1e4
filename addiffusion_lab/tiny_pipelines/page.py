"""``docs/pipelines.md``: tables of the measurements of every tiny pipeline, and of the refused pipelines."""

from __future__ import annotations

import datetime
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from typing import Any

import torch

from addiffusion_env.backbones.calls.preview_decoder import fit_colours
from addiffusion_env.backbones.conventions import Discrete
from addiffusion_env.backbones.devices import quiet_loading
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.errors import AdDiffusionError, unknown
from addiffusion_env.pages import markdown_table
from addiffusion_lab.tiny_pipelines import REFUSED, ZOO
from addiffusion_lab.tiny_pipelines.contract import (
    Case,
    guidance_formula,
    joined_lengths,
    network_rows,
    sign,
    times_heard,
)

AGREEMENT = ("pipeline", "class", "alone", "joined", "early exit", "prompt", "calls × rows", "joins")
CONVENTIONS = ("pipeline", "time heard", "sign", "guidance", "scheduler", "latents")
PREVIEW_COLUMNS = ("pipeline", "preview", "regions of refine", "steps", "guidance")
INEXACT = ("alone", "joined", "early exit", "prompt", "preview")
"""Columns whose last digit may differ between machines."""

TITLES = {
    "text-to-image": "Text to image",
    "image-to-image": "Image to image",
    "inpainting": "Inpainting",
    "controlnet": "ControlNet and adapters",
}
COMMAND = "python -m addiffusion_env check --pipelines --out docs/pipelines.md"


Row = dict[str, str]
"""The measurements of one pipeline: column -> text, for all three tables."""


def measure_row(name: str) -> Row:
    """Measures one tiny pipeline.

    Raises:
        CapabilityError: for a pipeline that cannot be driven step by step.
    """
    with quiet_loading(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = Case(name)
        wanted = [case.drawn(row) for row in range(3)]
        _, image, exit_image = case.early_exit()
        joined = [_difference(*pair) for pair in zip(case.joined(), wanted, strict=True)]
        return {
            "task": case.builder.task,
            "pipeline": f"`{name}`",
            "class": type(case.pipe).__name__.removesuffix("Pipeline"),
            "alone": figure(_difference(case.alone()[1], wanted[0])),
            "joined": figure(max(joined)),
            "early exit": figure(_difference(image, exit_image)),
            "prompt": figure(_difference(wanted[0], case.drawn(1, seed=0))),
            "calls × rows": calls_of(network_rows(case)),
            "joins": joins_of(case),
            "time heard": time_of(times_heard(case)),
            "sign": sign(case),
            "scheduler": scheduler_of(case),
            "latents": latents_of(case),
            "preview": preview_of(case),
            "regions of refine": regions_of(case),
            "steps": str(_default(case, "num_inference_steps")),
            "guidance": guidance_formula(case),
            "guidance default": guidance_of(case),
        }


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def figure(value: float) -> str:
    """One digit: ``0``, ``3e-7``, ``0.4``."""
    return "0" if value == 0 else f"{value:.1g}" if value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def calls_of(rows: Sequence[tuple[str, int]]) -> str:
    """``2 × 1``: two network calls of one row each; with the components' names if there are several."""
    groups: list[tuple[str, int, int]] = []
    for name, count in rows:
        if groups and groups[-1][0] == name and groups[-1][2] == count:
            groups[-1] = (name, groups[-1][1] + 1, count)
        else:
            groups.append((name, 1, count))
    named = len({name for name, _, _ in groups}) > 1
    return ", ".join(f"{name + ' ' if named else ''}{calls} × {count}" for name, calls, count in groups)


def joins_of(case: Case) -> str:
    """Whether calls are joined, and if not, why."""
    found = joined_lengths(case)
    return f"no: {case.not_joined.partition(' (')[0].partition(' at once')[0]}" if found == "no" else found


def time_of(heard: Sequence[float]) -> str:
    """First and last timestep of the denoiser."""
    return f"{heard[0]:.4g} → {heard[-1]:.4g}" if heard else "none"


def scheduler_of(case: Case) -> str:
    """The scheduler's class and convention."""
    convention = case.backbone.convention
    name = type(case.pipe.scheduler).__name__.removesuffix("Scheduler").removesuffix("Discrete")
    if isinstance(convention, Discrete):
        return f"{name}: {convention.parametrisation}"
    return f"{name}: {type(convention).__name__.lower()}"


def latents_of(case: Case) -> str:
    """The pipeline's own shape, and that of the engine if it differs."""
    layout = case.backbone.measured.layout
    inner, outer = ("×".join(map(str, shape)) for shape in (layout.inner, layout.shape))
    if not layout.spatial:
        return f"{inner} (layout unknown)"
    return inner if layout.order is None and inner == outer else f"{inner} → {outer}"


def preview_of(case: Case) -> str:
    """The preview decoder; for a fit, with its error relative to the colours' standard deviation."""
    decoder, measured = case.backbone.preview_decoder, case.backbone.measured
    if not decoder.possible:
        return "none"
    if measured.decoder is None:
        return "latents are pixels"
    if decoder.known is not None:
        return decoder.known.rpartition("/")[2]
    fitted = fit_colours(measured, case.backbone.decode)
    return f"fitted ({fitted.error / max(fitted.spread, 1e-9):.1g})"


def regions_of(case: Case) -> str:
    """How refine finds the region to resample."""
    can = case.backbone.capabilities
    if not can.masks:
        return "whole image"
    return "attention, phrases" if can.attention_grid is not None else "phrases"


def _default(case: Case, name: str) -> Any:
    parameter = inspect.signature(type(case.pipe).__call__).parameters.get(name)
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def guidance_of(case: Case) -> str:
    """The defaults of the guidance arguments of the class's call."""
    short = {"guidance_scale": "", "true_cfg_scale": "true_cfg ", "distilled_guidance_scale": "distilled "}
    found = [f"{label}{_default(case, name):g}" for name, label in short.items() if _default(case, name) is not None]
    return ", ".join(found) or "none"


def measure_refused(name: str) -> tuple[str, str, str]:
    """(name, class, the error's two lines) of a pipeline that is refused."""
    builder = REFUSED[name]
    given = {key: value for key, value in builder.arguments("a dog").items() if key not in ("prompt", "output_type")}
    with quiet_loading(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = builder()
        try:
            PipelineBackbone(pipe, given)
        except AdDiffusionError as error:
            said = " ".join(str(error).replace("->", "→").split())
            return f"`{name}`", type(pipe).__name__.removesuffix("Pipeline"), said
    return f"`{name}`", type(pipe).__name__.removesuffix("Pipeline"), "not refused"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells may contain ``|``."""
    return markdown_table(columns, ([cell.replace("|", "/") for cell in row] for row in rows)) + "\n"


def tables(rows: Sequence[Row]) -> str:
    """All tables of the measured pipelines."""
    parts = [AGREEMENT_TEXT]
    for task, title in TITLES.items():
        if chosen := [row for row in rows if row["task"] == task]:
            parts.append(
                f"### {title}\n\n{table(AGREEMENT, ([row[column] for column in AGREEMENT] for row in chosen))}"
            )
    parts.append(CONVENTIONS_TEXT + table(CONVENTIONS, ([row[column] for column in CONVENTIONS] for row in rows)))
    previews = ([*(row[column] for column in PREVIEW_COLUMNS[:-1]), row["guidance default"]] for row in rows)
    parts.append(PREVIEW_TEXT + table(PREVIEW_COLUMNS, previews))
    return "\n".join(parts)


def page(rows: Sequence[Row], refused: Iterable[Sequence[str]]) -> str:
    """The whole page."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("diffusers", "transformers", "torch"))
    stamp = f"Written by `{COMMAND}` on {datetime.date.today()} with {versions}.\n"
    classes = len({row["class"] for row in rows})
    intro = INTRODUCTION.format(stamp=stamp, rows=len(rows), classes=classes)
    return "\n".join([intro, tables(rows), REFUSED_TEXT + table(("pipeline", "class", "error message"), refused)])


def measure_all(name: str | None = None, say: Callable[[str], None] | None = None) -> str:
    """Measures every tiny pipeline and returns the page; with a name the tables of that one.

    Args:
        name: name of one pipeline; ``None`` for all.
        say: called with a progress message for each pipeline; ``None`` writes to the standard error stream.

    Raises:
        UnknownNameError: for a name that is not among the tiny pipelines.
    """
    say = say or (lambda text: print(text, file=sys.stderr, flush=True))
    if name is not None and name not in ZOO:
        raise unknown("tiny pipeline", name, ZOO)
    rows = []
    for at, chosen in enumerate([name] if name else ZOO, 1):
        say(f"{at}/{1 if name else len(ZOO)} {chosen}")
        rows.append(measure_row(chosen))
    return tables(rows) if name else page(rows, [measure_refused(other) for other in REFUSED])


INTRODUCTION = """# Any diffusers pipeline

{stamp}
Any loaded text-to-image pipeline of diffusers can be used as a backbone, and so can a user-defined class with the same
interface. There is no architecture-specific code. The pipeline's own `__call__` runs; it is suspended at each call of
its denoiser and of `scheduler.step`, so that images at different steps, with different prompts, share one network call.
Prompt templates, packing, guidance, time scales, safety checker and decoding remain the pipeline's.

```python
from addiffusion_env import AdaptivePipeline
from addiffusion_lab.tiny_pipelines import ZOO

pipe = ZOO["sd15"]()  # yours: AutoPipelineForText2Image.from_pretrained(...)
draw = AdaptivePipeline(pipe, "continue")
result = draw(["a red cup", "two dogs"], num_inference_steps=3, height=16, width=16)
print(len(result.images))
```

The sampler `"continue"` takes every step with a copy of the pipeline's own scheduler: the image equals the one that the
pipeline generates with the same `generator`. Every argument of the pipeline's `__call__` can be passed, as one value
for all or one value per prompt (of several images for each prompt, a list of lists).

A pipeline that cannot be called without an image is wrapped with one, which each call may replace:

```python
from PIL import Image
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone

photo = Image.new("RGB", (16, 16), "red")
backbone = PipelineBackbone.from_pipeline(ZOO["sd15_img2img"](), pipeline_kwargs={{"image": photo}})
result = AdaptivePipeline(backbone, "continue")(["a red cup"], image=photo, strength=0.6, num_inference_steps=5)
```

An environment takes them as `pipeline_kwargs`:

*Not run: its default scorers need weights.*

```python
import gymnasium as gym

settings = {{"height": 512, "width": 512, "negative_prompt": "blurry"}}
env = gym.make("AdDiffusion-Diffusers-v0", pipe=pipe, pipeline_kwargs=settings)
```

`gym.make("AdDiffusion-Diffusers-v0", name_or_path=...)` loads a hub id, a folder or a single file.

When a pipeline is wrapped, its first steps are run a few times: with one and with two images, to determine the batch
axes of the network's inputs; alone and joined, at different noise levels and with prompts of different length, to test
whether joining changes the results. Calls that differ by more than 1e-4 (3e-2 in half precision) are not joined: each
image then has its own network calls, and a warning says so.

The tables below are measured on {rows} tiny pipelines of {classes} classes with random weights, in float32 on a CPU.
They show that the numbers agree, and what each class does. They do not measure image quality, speed, or the behaviour
of trained networks, and the sizes and noise levels are those of the tiny configurations.
"""
AGREEMENT_TEXT = """## Agreement

Largest absolute difference of a pixel, in [-1, 1], from the image of the pipeline's own call.

- **alone**: one image alone.
- **joined**: three images of different prompts in one batch, each one step behind the previous one.
- **early exit**: one step, then the clean prediction; compared with the pipeline's own call ending its loop there.
- **prompt**: for scale, the largest difference of a pixel between two prompts.
- **calls × rows**: calls of the denoiser in one step, and rows (images times branches of guidance) in each.
- **joins**: which images share a call: those with prompts of *any* length, those whose prompts have *one length* in
  tokens (the pipeline does not pad), or none.
"""
CONVENTIONS_TEXT = """## Conventions

You need not know any of this to use a pipeline; a hand-written loop would have to reproduce it.

- **time heard**: the denoiser's timestep input in the first and in the last step of the tiny run.
- **sign**: whether the network's output reaches the scheduler unchanged, negated, or converted (from clean latents, by
  preconditioning).
- **guidance**: with scale g, output c with the prompt and u without it: *g* is `u + g (c - u)`; *1 + g* is
  `c + g (c - u)`, where 0 is no guidance; *rescaled* means that the result is rescaled to the norm of c, so that it is
  not linear in the outputs; *read by the network*: the scale is an input of the network. Measured by setting the
  network's output to 1 in one row and 0 in the others.
- **scheduler**: the tiny pipeline's scheduler and its convention.
- **latents**: the shape in the pipeline's loop → in the engine.

"""
PREVIEW_TEXT = """## Previews, regions, defaults

- **preview**: the tiny decoder that is known for this autoencoder, or a least-squares map from latents to colours,
  with its error relative to the colours' standard deviation (random decoders are hard to fit).
- **regions of refine**: how the region to resample is found: cross or joint *attention*, differences between *phrases*
  (evaluations without one of them), or only the *whole image*.
- **steps**, **guidance**: defaults of the class's `__call__`.

"""
REFUSED_TEXT = """## What is refused

Pipelines without a prompt, without a denoising loop over their scheduler's timesteps, with two stages in one call, or
for video or audio; pipelines with a cache enabled in their denoiser, which mixes the images of a batch; and arguments
that the pipeline does not have. Each raises an error of two lines: the cause, and what to do.

"""
