"""The one place that touches dgl, whose published wheels stop at torch 2.2.

With a newer torch ``import dgl`` fails inside ``dgl.graphbolt``, which loads a library built for one torch version. An
empty stand-in for that submodule lets the rest work: graphs, message passing, ``dgl.nn``, sampling. ``dgl.sparse``
stays broken. Nothing in planish depends on dgl; graphs are converted and left alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

from planish.errors import MissingRequirement

HINT = "pip install 'planish-graph[dgl]'"


def load() -> Any:
    """The module ``dgl``.

    Raises:
        MissingRequirement: it is not installed, or cannot be imported even so; the text says which and what to do.
    """
    if "dgl" in sys.modules:
        return sys.modules["dgl"]
    if importlib.util.find_spec("dgl") is None:
        raise MissingRequirement(f"dgl is not installed: {HINT}")
    try:
        return importlib.import_module("dgl")
    except (ImportError, OSError) as error:
        first = error
    _forget()
    sys.modules["dgl.graphbolt"] = types.ModuleType(
        "dgl.graphbolt", "empty: its library is built for another torch"
    )
    try:
        return importlib.import_module("dgl")
    except (ImportError, OSError) as error:
        _forget()
        missing = getattr(error, "name", None)
        advice = f"pip install {missing}" if missing and not missing.startswith("dgl") else HINT
        raise MissingRequirement(
            f"dgl cannot be imported ({_line(error)}; at first: {_line(first)}): {advice}, or convert the graph to "
            "an edge_index or a torch CSR tensor yourself"
        ) from None


def _forget() -> None:
    """Remove what a failed import left behind."""
    for name in [name for name in sys.modules if name == "dgl" or name.startswith("dgl.")]:
        del sys.modules[name]


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
