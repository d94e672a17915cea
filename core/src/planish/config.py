"""One pydantic model a method: the Python signature, the recipe, the CLI help, the JSON schema and the sweep space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from planish.errors import ConfigError
from planish.method import Method, resolve


class MethodConfig(BaseModel):
    """Base of every method's options: immutable, unknown fields refused, defaults checked like given values."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], options: Mapping[str, Any], owner: str) -> M:
    """``model(**options)``, or one line that names the field, the value and what is allowed.

    Raises:
        ConfigError: the options do not fit; only the first problem is told, with the number of further ones.
    """
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        raise ConfigError(f"{owner}: {one_line(error, model)}") from None


def method_config(method: Method, options: Mapping[str, Any]) -> MethodConfig:
    """The validated options of one method."""
    model: type[MethodConfig] = resolve(method.config)
    return validate(model, options, method.name)


def one_line(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of a validation error in one line."""
    problems = error.errors()
    first = problems[0]
    place = ".".join(str(part) for part in first["loc"]) or "options"
    if first["type"] == "extra_forbidden":
        text = f"unknown field {place!r} (fields: {', '.join(_fields_at(model, first['loc']))})"
    elif first["type"] == "missing":
        text = f"field {place!r} is required"
    elif first["type"] == "value_error":
        text = f"{place} = {_short(first['input'])}: {first['ctx']['error']}"
    else:
        message = first["msg"][0].lower() + first["msg"][1:]
        text = f"{place} = {_short(first['input'])}: {message}"
    more = len(problems) - 1
    return text + (f" (and {more} more problem{'s' if more > 1 else ''})" if more else "")


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the (nested) model that the last part of ``location`` was looked up in."""
    for part in location[:-1]:
        if not isinstance(part, str) or part not in model.model_fields:
            continue
        annotation = model.model_fields[part].annotation
        for candidate in (annotation, *get_args(annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return list(model.model_fields)


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
