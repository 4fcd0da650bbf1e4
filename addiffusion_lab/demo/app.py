"""The page in Gradio: controls on top, the output below, streamed after every decision."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from addiffusion_env.agents.make import make_policy
from addiffusion_env.agents.pipeline import AdaptivePipeline
from addiffusion_env.agents.saved_policy import SavedPolicy
from addiffusion_env.envs.settings import named_backbone
from addiffusion_env.errors import AdDiffusionError, ConfigError, MissingPackageError
from addiffusion_lab.demo import page
from addiffusion_lab.demo.prompts import MOST_CHARACTERS, guide_of, read_prompt
from addiffusion_lab.demo.takes import Studio, Take, check_policy

HOST = "127.0.0.1"
"""Only this machine; ``share`` makes the page public."""

MOST_SEED = 2**31 - 1
HIGHEST_PORT = 65_535


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        url: address of the page.
        blocks: Gradio's object; its ``close`` ends the server.
    """

    url: str
    blocks: Any


def showing(studio: Studio, text: str | None, seed: float | None, cost_per_nfe: float) -> Iterator[str]:
    """Event handler of the button: yields HTML after every decision.

    Errors become messages on the page; nothing is raised.

    Args:
        studio: holds the policy.
        text: the prompt as typed.
        seed: seed of the image, an integer from 0 to 2^31 - 1.
        cost_per_nfe: cost of one NFE.
    """
    try:
        prompt = read_prompt(text, studio.traits)
        number = _seed(seed)
        note = guide_of(studio.traits).advice(prompt)
        takes = [Take("policy")]
        yield page.stage(prompt.text, note, takes)
        for take in studio.policy(prompt, number, cost_per_nfe):
            takes = [take]
            yield page.stage(prompt.text, note, takes, studio.comparators(take.nfe) if take.image is not None else ())
        names = studio.comparators(takes[0].nfe)
        for place, name in enumerate(names):
            done = list(takes)
            for take in studio.fixed(name, prompt, number):
                takes = [*done, take]
                yield page.stage(prompt.text, note, takes, names[place + 1 :])
    except AdDiffusionError as error:
        # Visitors cannot change settings, so that part of the remedy is removed.
        yield page.message(error.cause, error.remedy.partition(", or set ")[0])


def _seed(seed: float | None) -> int:
    if seed is None or not 0 <= seed <= MOST_SEED or int(seed) != seed:
        raise ConfigError(f"The seed must be a whole number from 0 to {MOST_SEED}, got {seed}.", "Use 0.")
    return int(seed)


def build(studio: Studio) -> Any:
    """The page as Gradio's ``Blocks``.

    Raises:
        MissingPackageError: without Gradio.
    """
    gradio = _gradio()
    guide = guide_of(studio.traits)
    examples, vocabulary = guide.examples, guide.vocabulary()
    highest = studio.highest_cost_per_nfe

    def answer(text: str, seed: float, cost_per_nfe: float) -> Iterator[str]:
        yield from showing(studio, text, seed, cost_per_nfe)

    with gradio.Blocks(title="AdDiffusion", analytics_enabled=False) as blocks:
        gradio.HTML(f"<h1>AdDiffusion</h1>{page.about(studio)}{page.legend()}", elem_id="intro", padding=False)
        with gradio.Row():
            # The length is also checked on the server.
            text = gradio.Textbox(
                examples[1], label="Prompt", scale=5, lines=1, max_lines=3, max_length=MOST_CHARACTERS, elem_id="prompt"
            )
            seed = gradio.Number(0, label="Seed", precision=0, minimum=0, maximum=MOST_SEED, scale=1, elem_id="seed")
            cost_per_nfe = gradio.Slider(
                0,
                highest or 1,
                value=float(f"{studio.cost_per_nfe:.4g}"),
                step=(highest or 1) / 30,
                label="Cost per NFE",
                info="Higher spends less.",
                scale=3,
                visible=highest > 0,
                elem_id="cost_per_nfe",
            )
            button = gradio.Button("Draw", variant="primary", scale=1, min_width=90, elem_id="draw")
        gradio.Examples([[example] for example in examples], [text], label="Examples")
        stage = gradio.HTML(page.empty(), elem_id="stage", padding=False)
        if vocabulary:
            with gradio.Accordion("What can be drawn?", open=False):
                gradio.HTML(vocabulary, padding=False)
        # Requests during generation are queued; Gradio's default drops them.
        gradio.on(
            [button.click, text.submit],
            answer,
            [text, seed, cost_per_nfe],
            stage,
            show_progress="hidden",
            trigger_mode="always_last",
        )
    return blocks


def load(policy: str | None = None, device: str = "auto", pipe: str | None = None) -> Studio:
    """Loads a policy and its model, or a policy and the pipeline that it is shown on.

    Args:
        policy: see :func:`serve`.
        device: see :func:`serve`.
        pipe: see :func:`serve`.

    Raises:
        ConfigError: for a policy that cannot be shown, or does not fit the pipeline.
        AdDiffusionError: when the policy or its model cannot be loaded.
    """
    if pipe is None:
        return Studio(AdaptivePipeline.from_pretrained(policy or "emoji", device=device))
    sampler = None if policy is None else make_policy(policy)
    if sampler is not None:  # before the pipeline is loaded
        check_policy(sampler)
    backbone = named_backbone(pipe, device)
    if policy is not None and isinstance(sampler, SavedPolicy):  # with the scorers that it was made with
        return Studio(AdaptivePipeline.from_pretrained(policy, sampler, backbone=backbone), own_steps=True)
    return Studio(AdaptivePipeline(backbone, sampler), own_steps=True)


def serve(
    policy: str | None = None,
    device: str = "auto",
    port: int = 7860,
    share: bool = False,
    block: bool = True,
    pipe: str | None = None,
) -> Served:
    """Loads a policy and serves the page.

    Args:
        policy: ``"emoji"``, the folder of a run or calibration, or a hub id; with ``pipe`` also a sampler that decides,
            such as ``"stop:12"``. ``None`` is ``"emoji"``, or with ``pipe`` what ``AdaptivePipeline``
            does without a policy (:func:`.untrained.default_policy`).
        device: ``auto``, ``cpu``, ``cuda`` ...
        port: local port; 0 selects any free one.
        share: also serve at a public Gradio address, for 72 hours.
        block: wait until the server is stopped (Ctrl-C).
        pipe: any diffusers pipeline, by its folder or hub id, or a backbone's name: it is shown beside its own number
            of steps and half of it. ``None`` is the model that the policy was made on, beside as many fixed steps as
            the policy took and fifty.

    Raises:
        MissingPackageError: without Gradio.
        ConfigError: when the port is in use or invalid.
        AdDiffusionError: when the policy or its model cannot be loaded.
    """
    gradio = _gradio()
    if not 0 <= port <= HIGHEST_PORT:
        raise ConfigError(f"--port must be from 0 to {HIGHEST_PORT}, got {port}", "0 selects any free one")
    studio = load(policy, device, pipe)
    for _ in studio.fixed("fixed:2", read_prompt("a photo of a dog", studio.traits), 0):
        pass  # warm-up, so that the first visitor's timing is representative
    blocks = build(studio)
    theme = gradio.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        _, url, _ = blocks.launch(
            server_name=HOST,
            server_port=port or None,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            theme=theme,
            css=page.stylesheet(),
            footer_links=[],
        )
    except OSError as error:
        raise ConfigError(f"port {port} on {HOST} cannot be used: {error}", "choose another --port, or 0") from error
    print(f"the demo is at {url}  (Ctrl-C stops it)", flush=True)
    if block:
        blocks.block_thread()
    return Served(url, blocks)


def _gradio() -> Any:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise MissingPackageError(
            f"the demo needs gradio, which cannot be imported: {error}", "pip install 'addiffusion-env[demo]'"
        ) from error
    return gradio
