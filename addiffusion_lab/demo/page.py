"""Images and texts of the page as HTML. All user input is escaped."""

from __future__ import annotations

import base64
import functools
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from addiffusion_env.agents.rule_policy import RulePolicy
from addiffusion_env.agents.saved_policy import SavedPolicy
from addiffusion_env.engine.process import Action
from addiffusion_env.envs.rendering import ACTION_COLOURS, overlay_mask
from addiffusion_env.pages import environment
from addiffusion_env.samplers.checked_attempts import CheckedAttempts
from addiffusion_lab.demo.takes import Studio, Take

HERE = Path(__file__).parent

SMALLEST = 128
"""Small images are enlarged by an integer factor to at least this many pixels before they are sent."""

LARGEST_PNG, JPEG_QUALITY = 256, 92

MEANINGS = {
    Action.CONTINUE: "follow the schedule to the next decision",
    Action.STOP: "finish in a few evaluations, or accept the finished image",
    Action.REFINE: "redraw a region or the whole image",
}

TITLES = {"policy": "Policy"}


def escape(text: str) -> str:
    """Escapes text for HTML, including braces, dollars and backticks, which Gradio's templates would interpret.

    >>> escape("<b>${x}</b>")
    '&lt;b&gt;&#36;&#123;x&#125;&lt;/b&gt;'
    """
    escaped = html.escape(text, quote=True)
    for character in "{}$`":
        escaped = escaped.replace(character, f"&#{ord(character)};")
    return escaped


def image(pixels: np.ndarray, description: str, mask: np.ndarray | None = None) -> Markup:
    """An image element with embedded pixels: (h, w, 3) uint8."""
    factor = max(1, -(-SMALLEST // min(pixels.shape[:2])))
    large = np.kron(pixels, np.ones((factor, factor, 1), np.uint8)) if factor > 1 else pixels
    buffer = io.BytesIO()
    # The whole page is sent after every decision: photographs as PNG would be megabytes each time.
    kind = "png" if factor > 1 or max(large.shape) <= LARGEST_PNG else "jpeg"
    Image.fromarray(large if mask is None else overlay_mask(large, mask)).save(buffer, kind, quality=JPEG_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    style = ' class="ad-enlarged"' if factor > 1 else ""
    return Markup(f'<img{style} alt="{escape(description)}" src="data:image/{kind};base64,{data}">')


def title(name: str) -> str:
    """Display name of a sampler.

    >>> title("fixed:6"), title("fixed:1"), title("policy")
    ('6 fixed steps', '1 fixed step', 'Policy')
    """
    kind, _, steps = name.partition(":")
    if kind == "fixed":
        return f"{steps} fixed step{'' if steps == '1' else 's'}"
    return TITLES.get(name, name)


def about(studio: Studio) -> str:
    """One line that says which model draws, and by which policy."""
    backbone = studio.pipe.backbone
    pipe = getattr(backbone, "pipe", None)
    return str(_macros().about(backbone.name if pipe is None else type(pipe).__name__, policy_words(studio.sampler)))


def policy_words(sampler: Any) -> str:
    """What a policy does, in a few words; its name where that is all that is known.

    >>> from addiffusion_env.samplers.checked_attempts import CheckedAttempts
    >>> policy_words(CheckedAttempts(attempts=1))
    'untrained: the first attempt exits after 60 % of the steps; no image is checked'
    """
    if isinstance(sampler, SavedPolicy):
        return (
            "a calibrated rule" if isinstance(sampler, RulePolicy) else "trained"
        )  # its cost per NFE is that of the slider
    if not isinstance(sampler, CheckedAttempts):
        return str(sampler.name)
    first = f"untrained: the first attempt exits after {100 * sampler.exit_at:g} % of the steps"
    if sampler.attempts == 1:
        return f"{first}; no image is checked"
    again = f"{sampler.attempts - 1} times at most"
    return f"{first}; an image that scores below {sampler.threshold:g} is drawn again, {again}"


def legend() -> str:
    """One line that explains the three actions."""
    return str(_macros().legend())


def message(cause: str, remedy: str = "", kind: str = "error") -> str:
    """A message box: an ``error`` or a ``note``."""
    return str(_macros().message(cause, remedy, kind))


def stage(prompt: str, note: str, takes: Sequence[Take], waiting: Sequence[str] = ()) -> str:
    """The whole output: the policy's filmstrip, then a card for each sampler.

    Args:
        prompt: the visitor's text.
        note: a note about it; may be empty.
        takes: the takes, the policy's first.
        waiting: names of the samplers that have not started.
    """
    return str(_macros().stage(prompt, note, takes, waiting))


def empty() -> str:
    """Placeholder of the output."""
    return str(_macros().empty())


def filmstrip(take: Take) -> str:
    """A row of cells, one per decision: the preview, the probability of each action, the chosen action."""
    return str(_macros().filmstrip(take))


def card(take: Take) -> str:
    """A sampler's image with its cost, its verdict, and thumbnails of its previews."""
    return str(_macros().card(take))


def stylesheet() -> str:
    """The page's CSS; action colours are those of filmstrips and plots."""
    rules = [(HERE / "demo.css").read_text(encoding="utf-8")]
    for action in Action:
        colour, name = ",".join(map(str, ACTION_COLOURS[action])), action.name.lower()
        rules.append(f".ad-{name} {{ background: rgb({colour}); }}")
        rules.append(f".ad-chose-{name} {{ border-top-color: rgb({colour}) !important; }}")
    return "\n".join(rules)


@functools.lru_cache(maxsize=1)
def _macros() -> Any:
    filters: dict[str, Callable[..., Any]] = {
        "image": image,
        "title": title,
        "name": lambda action: Action(action).name.lower(),
    }
    return environment(escape, filters, HERE, meanings=MEANINGS).get_template("demo.html").module
