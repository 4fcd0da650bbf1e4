"""The page's pictures and words as HTML. Everything that a visitor typed is escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from addiffusion_env.demo.takes import Moment, Take
from addiffusion_env.engine.process import Action
from addiffusion_env.envs.rendering import ACTION_COLOURS, overlay_mask

SMALLEST = 128
"""Small pictures are enlarged by a whole factor to at least this many pixels before they are sent."""

MEANINGS = {
    Action.CONTINUE: "take one more step",
    Action.STOP: "finish now, in a few evaluations",
    Action.REFINE: "draw a region, or all of it, again",
}

TITLES = {"policy": "Policy"}


def escape(text: str) -> str:
    """Text for HTML; braces, dollars and backticks too, which Gradio's templates would read.

    >>> escape("<b>${x}</b>")
    '&lt;b&gt;&#36;&#123;x&#125;&lt;/b&gt;'
    """
    escaped = html.escape(text, quote=True)
    for character in "{}$`":
        escaped = escaped.replace(character, f"&#{ord(character)};")
    return escaped


def picture(pixels: np.ndarray, description: str, mask: np.ndarray | None = None) -> str:
    """An image element with the pixels in it: (h, w, 3) uint8."""
    factor = max(1, -(-SMALLEST // min(pixels.shape[:2])))
    large = np.kron(pixels, np.ones((factor, factor, 1), np.uint8)) if factor > 1 else pixels
    buffer = io.BytesIO()
    Image.fromarray(large if mask is None else overlay_mask(large, mask)).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">'


def legend() -> str:
    """One line that says what the three actions mean."""
    said = (
        f'<span class="ad-key ad-{action.name.lower()}">{action.name.lower()}</span> {meaning}'
        for action, meaning in MEANINGS.items()
    )
    return (
        f'<p class="ad-legend">At each decision the policy looks at a preview and chooses: {" &nbsp; ".join(said)}. '
        "<b>NFE</b> counts evaluations of the network: what a picture costs.</p>"
    )


def message(cause: str, remedy: str = "", kind: str = "error") -> str:
    """A box with something to tell: an ``error`` or a ``note``."""
    return f'<div class="ad-message ad-{kind}" role="alert">{escape(cause)} {escape(remedy)}</div>'


def stage(prompt: str, note: str, takes: Sequence[Take], waiting: Sequence[str] = ()) -> str:
    """The whole of a showing: the policy's film, then a card for each method.

    Args:
        prompt: the visitor's text.
        note: what to tell about it; empty for nothing.
        takes: the policy's first.
        waiting: names of the methods still to come.
    """
    told = message(note, kind="note") if note else ""
    cards = "".join([*map(card, takes), *map(_waiting, waiting)])
    return (
        f'<div class="ad-stage">{told}<h3>What the policy saw and chose: <q>{escape(prompt)}</q></h3>'
        f'{film(takes[0])}<h3>The same prompt and seed, with and without the policy</h3><div class="ad-cards">{cards}'
        "</div></div>"
    )


def empty() -> str:
    """What stands where the showing will be."""
    return '<div class="ad-empty">Press <b>Draw</b>: the film appears here, one decision after the other.</div>'


def film(take: Take) -> str:
    """A row of cells, a decision each: the preview, the probability of each action, the one that was chosen."""
    cells = [cell(moment) for moment in take.moments]
    if take.picture is not None:
        shown = picture(take.picture, "the finished picture")
        cells.append(
            f'<div class="ad-cell ad-done">{shown}<div class="ad-at">finished &middot; {take.nfe:g} NFE</div></div>'
        )
    return f'<div class="ad-film">{"".join(cells)}</div>'


def cell(moment: Moment) -> str:
    """One decision of a film."""
    chosen = Action(moment.action).name.lower()
    seen = picture(moment.pixels, f"what was seen at step {moment.step}", moment.mask)
    bars = "" if moment.probabilities is None else "".join(
        bar(action, float(moment.probabilities[action]), action == moment.action) for action in Action
    )  # fmt: skip
    return (
        f'<div class="ad-cell ad-chose-{chosen}">{seen}<div class="ad-at">step {moment.step} &middot; '
        f'{moment.nfe:g} NFE</div>{bars}<div class="ad-choice ad-{chosen}">{chosen}</div></div>'
    )


def bar(action: Action, probability: float, chosen: bool) -> str:
    """The probability of one action."""
    name = action.name.lower()
    return (
        f'<div class="ad-bar{" ad-chosen" if chosen else ""}"><span>{name}</span><i><b class="ad-{name}" '
        f'style="width:{100 * probability:.0f}%"></b></i><em>{probability:.2f}</em></div>'
    )


def title(name: str) -> str:
    """How a method is called on the page: ``"fixed:6"`` is "6 fixed steps"."""
    kind, _, steps = name.partition(":")
    if kind == "fixed":
        return f"{escape(steps)} fixed step{'' if steps == '1' else 's'}"
    return escape(TITLES.get(name, name))


def card(take: Take) -> str:
    """A method's picture with what it cost, whether it is right, and how it came about in small."""
    newest = take.picture if take.picture is not None else (take.moments[-1].pixels if take.moments else None)
    shown = '<div class="ad-blank"></div>' if newest is None else picture(newest, f"picture of {take.name}")
    state = "" if take.picture is not None else " ad-working"
    small = "".join(picture(moment.pixels, f"step {moment.step}") for moment in take.moments)
    return (
        f'<div class="ad-card{state}" data-method="{escape(take.name)}"><div class="ad-side">{shown}<div>'
        f'<h4>{title(take.name)}</h4><div class="ad-cost"><span class="ad-nfe">{take.nfe:g} NFE</span>'
        f'<span>{take.seconds:.2f} s</span></div>{_verdict(take)}</div></div><div class="ad-small">{small}</div></div>'
    )


def _waiting(name: str) -> str:
    return (
        f'<div class="ad-card ad-waiting"><div class="ad-side"><div class="ad-blank"></div><div><h4>{title(name)}</h4>'
        "waits ...</div></div></div>"
    )


def _verdict(take: Take) -> str:
    if take.picture is None:
        return '<div class="ad-verdict">drawing ...</div>'
    if take.correct is None:
        return f'<div class="ad-verdict">preference {take.preference:+.2f}</div>'
    if take.correct:
        return '<div class="ad-verdict ad-right">&#10003; as asked</div>'
    return f'<div class="ad-verdict ad-wrong">&#10007; {escape(take.reason)}</div>'


def stylesheet() -> str:
    """The page's CSS; action colours are those of films and plots."""
    rules = []
    for action in Action:
        red, green, blue = ACTION_COLOURS[action]
        name = action.name.lower()
        rules.append(f".ad-{name} {{ background: rgb({red},{green},{blue}); }}")
        rules.append(f".ad-chose-{name} {{ border-top-color: rgb({red},{green},{blue}) !important; }}")
    return STYLE + "\n".join(rules)


STYLE = """
#stage, #intro, #stage > *, #intro > * { padding-left: 0 !important; padding-right: 0 !important; }
#draw { align-self: center; background: var(--primary-600); color: #fff; }
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.ad-legend { margin: 2px 0 0; line-height: 1.9; }
.ad-key, .ad-choice { color: #fff; border-radius: 4px; padding: 1px 8px; font-weight: 600; }
.ad-stage h3 { margin: 14px 0 8px; font-size: 1rem; overflow-wrap: anywhere; }
.ad-stage h4 { margin: 0 0 8px; font-size: .95rem; }
.ad-film { display: flex; flex-wrap: wrap; gap: 10px; }
.ad-cell { width: 142px; border: 1px solid var(--border-color-primary); border-top: 4px solid #888;
  border-radius: 8px; padding: 6px; background: var(--background-fill-primary); font-size: 12px; }
.ad-cell img, .ad-card img { width: 100%; display: block; border-radius: 4px; image-rendering: pixelated; margin: 0; }
.ad-done { border-color: #2f9e5b; border-top-color: #2f9e5b; }
.ad-at { margin: 4px 0; opacity: .75; white-space: nowrap; }
.ad-bar { display: flex; align-items: center; gap: 4px; opacity: .75; line-height: 1.5; font-size: 11px; }
.ad-bar span { width: 54px; } .ad-bar em { width: 26px; text-align: right; font-style: normal; }
.ad-bar i { flex: 1; height: 7px; border-radius: 4px; background: var(--border-color-primary); overflow: hidden; }
.ad-bar b { display: block; height: 100%; }
.ad-bar.ad-chosen { opacity: 1; font-weight: 700; }
.ad-choice { text-align: center; margin-top: 6px; }
.ad-cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 12px; }
.ad-card { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 12px;
  background: var(--background-fill-primary); }
.ad-card[data-method="policy"] { border-color: var(--color-accent); box-shadow: 0 0 0 1px var(--color-accent); }
.ad-waiting { opacity: .55; border-style: dashed; }
.ad-side { display: grid; grid-template-columns: 140px 1fr; gap: 12px; }
.ad-blank { aspect-ratio: 1; border-radius: 4px; background: var(--border-color-primary); opacity: .5; }
.ad-small { display: grid; grid-template-columns: repeat(10, 1fr); gap: 3px; margin-top: 8px; min-height: 28px; }
.ad-empty { border: 1px dashed var(--border-color-primary); border-radius: 10px; padding: 60px 20px;
  text-align: center; opacity: .75; margin-top: 10px; }
.ad-working img { opacity: .6; }
.ad-cost { display: flex; flex-wrap: wrap; column-gap: 14px; align-items: baseline; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.ad-nfe { font-weight: 700; font-size: 1.25rem; }
.ad-verdict { font-size: 12px; margin-top: 4px; overflow-wrap: anywhere; }
.ad-right { color: #2f9e5b; font-weight: 600; } .ad-wrong { color: #c83c3c; }
.ad-message { border-radius: 8px; padding: 10px 14px; border: 1px solid; overflow-wrap: anywhere; }
.ad-error { border-color: #c83c3c; background: rgba(200,60,60,.10); }
.ad-note { border-color: #f0aa1e; background: rgba(240,170,30,.12); }
.ad-words span { display: inline-block; margin: 1px 12px 1px 0; white-space: nowrap; }
.ad-words span i { display: inline-block; width: .8em; height: .8em; border-radius: 50%; border: 1px solid #8888; }
"""
