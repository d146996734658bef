"""An extension of griffe: the cross-references of docstrings become code on the site.

It is no page, and no part of the package.
"""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod):`~?([^`]+)`")


class Roles(griffe.Extension):
    """Makes ``:meth:`step``` read as `step`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)
