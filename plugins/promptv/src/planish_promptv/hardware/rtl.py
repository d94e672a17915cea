"""The hand-written designs: Verilog files whose constants stand as ``@NAME@``."""

from __future__ import annotations

import string
from importlib import resources


class Design(string.Template):
    """A template with ``@NAME@``, since Verilog needs the dollar sign."""

    delimiter = "@"
    pattern = r"@(?:(?P<named>[A-Z]+)@|(?P<braced>(?!))|(?P<escaped>(?!))|(?P<invalid>(?!)))"  # type: ignore[assignment]


def template(name: str) -> Design:
    """The design in file ``name``."""
    return Design(resources.files(__package__).joinpath("designs", name).read_text(encoding="utf-8"))
