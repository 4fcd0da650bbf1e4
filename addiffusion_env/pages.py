"""Pages rendered from the templates in ``templates``: all inserted text is escaped, in HTML and in Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"

# Invisible characters with an effect: control characters and changes of direction.
_INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def markdown(text: str) -> str:
    r"""Escapes text for Markdown, and joins its lines.

    >>> markdown("a *b*\n| c")
    'a \\*b\\* \\| c'
    """
    return " ".join(re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", _INVISIBLE.sub("\N{REPLACEMENT CHARACTER}", text)).split())


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; the cells are Markdown.

    >>> print(markdown_table(("sampler", "NFE"), [("fixed:8", 8)]))
    | sampler | NFE |
    | --- | --- |
    | fixed:8 | 8 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def environment(
    escape: Callable[[str], str], filters: Mapping[str, Callable[..., Any]], folder: Path = TEMPLATES, **names: Any
) -> Any:
    """The Jinja environment of the templates.

    Args:
        escape: escapes a text for the page.
        filters: name -> filter function; its results of type :class:`markupsafe.Markup` are not escaped.
        folder: folder of the templates.
        **names: global names of templates and macros.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        return (
            value
            if isinstance(value, Markup)
            else Markup(escape(_INVISIBLE.sub("\N{REPLACEMENT CHARACTER}", str(value))))
        )

    jinja = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters.update(filters)
    jinja.globals.update(names)
    return jinja


def render(template: str, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """Renders a page.

    Args:
        template: name of a file in ``templates``; values are escaped as HTML for ``.html``, otherwise as Markdown.
        filters: see :func:`environment`.
        **values: values of the template's variables.
    """
    escape = html.escape if template.endswith(".html") else markdown
    return environment(escape, filters).get_template(template).render(**values)
