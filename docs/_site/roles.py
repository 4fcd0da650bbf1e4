"""Sphinx roles in docstrings (``:class:`X```), which editors understand, as plain code on the site."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?([^`]+)`")


class Roles(griffe.Extension):
    """Strips the role and the package's name from every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every object once its members are known."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(
                lambda match: f"`{match[1].removeprefix('addiffusion_env.')}`", obj.docstring.value
            )
