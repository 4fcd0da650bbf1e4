"""Pages from the templates in ``templates``: every text that is put in is escaped, in HTML and in Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"

# Characters that act instead of being seen: control characters and changes of direction.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def markdown(text: str) -> str:
    r"""Text that Markdown shows as it is, on one line.

    >>> markdown("a *b*\n| c")
    'a \\*b\\* \\| c'
    """
    return " ".join(re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)).split())


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; cells are taken as Markdown.

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
    """Jinja's environment of the templates.

    Args:
        escape: makes of a text one that the page shows as it is.
        filters: name -> function for templates; what one gives as :class:`markupsafe.Markup` is not escaped.
        folder: of the templates.
        **names: what templates and their macros can name.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        return (
            value if isinstance(value, Markup) else Markup(escape(_UNSEEN.sub("\N{REPLACEMENT CHARACTER}", str(value))))
        )

    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(filters)
    made.globals.update(names)
    return made


def render(template: str, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """A page.

    Args:
        template: a file's name in ``templates``; ``.html`` is escaped as HTML, others as Markdown.
        filters: see :func:`environment`.
        **values: what the template names.
    """
    escape = html.escape if template.endswith(".html") else markdown
    return environment(escape, filters).get_template(template).render(**values)
