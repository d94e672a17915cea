"""What a config class leaves unsaid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "enum", "const")


def problems(config: type[BaseModel]) -> list[str]:
    """One line for each field without a description, and for each number with neither bounds nor choices."""
    schema = config.model_json_schema()
    found = list(_problems(schema, config.__name__))
    for name, nested in schema.get("$defs", {}).items():
        found += _problems(nested, name)
    return found


def _problems(schema: dict[str, Any], owner: str) -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        if not field.get("description"):
            yield f"{owner}.{name}: has no description"
        for part in _parts(field):
            if part.get("type") in ("integer", "number") and not any(bound in part for bound in _BOUNDS):
                yield f"{owner}.{name}: a number with neither bounds nor choices"


def _parts(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schema itself, its alternatives, and what its lists and mappings hold."""
    yield schema
    inner = [*schema.get("anyOf", ()), *schema.get("allOf", ()), *schema.get("prefixItems", ())]
    inner += [schema[key] for key in ("items", "additionalProperties") if isinstance(schema.get(key), dict)]
    for part in inner:
        yield from _parts(part)
