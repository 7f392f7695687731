"""Reads the docstrings of this repository as mkdocstrings does: `Example:` is the section that it calls `Examples:`."""

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Renames the heading of the examples, which otherwise are shown as quotations."""

    def on_object(self, *, obj: griffe.Object, **_more: Any) -> None:
        """Called for every object of the source code."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
