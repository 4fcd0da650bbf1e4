"""Docstrings made ready for Markdown: Sphinx roles and ``>>>`` examples become code."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?([^`]+)`")
EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.M)


class Roles(griffe.Extension):
    """Strips roles and the package's name, and fences examples."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every object once its members are known."""
        if obj.docstring is None:
            return
        text = ROLE.sub(lambda match: f"`{match[1].removeprefix('addiffusion_env.')}`", obj.docstring.value)
        obj.docstring.value = EXAMPLE.sub(lambda match: f"```pycon\n{match[0]}\n```", text)
