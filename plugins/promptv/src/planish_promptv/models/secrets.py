"""Keys: read from the environment, held where they do not print, and removed from whatever is written."""

from __future__ import annotations

import os
import re

from planish.errors import ConfigError

MASK = "[redacted]"
# Forms in which endpoints echo keys, whole or half masked: sk-…, hf_…, "Bearer …".
_LOOKS_LIKE_A_KEY = re.compile(
    r"\b(?:sk|pk|gsk|hf|nvapi|xai|rk)[-_][\w*.-]{6,}|(?i:\bbearer\s+)[\w*.~+/-]{6,}=*"
)
_SHORTEST = 8
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Key:
    """An API key. It never prints: ``str`` and ``repr`` name the variable it came from."""

    __slots__ = ("_value", "variable")

    def __init__(self, variable: str, value: str) -> None:
        self.variable = variable
        self._value = value

    @classmethod
    def read(cls, variable: str | None) -> Key | None:
        """The key in the environment variable ``variable``; None where no variable is named.

        Raises:
            ConfigError: the variable is not set, or what was given is no variable's name.
        """
        if variable is None:
            return None
        if not _NAME.fullmatch(variable):
            raise ConfigError("api_key_env: give the name of an environment variable, never the key itself")
        value = os.environ.get(variable, "").strip()
        if not value:
            raise ConfigError(f"api_key_env = {variable!r}: this environment variable is not set")
        if not (value.isascii() and value.isprintable()) or " " in value:
            raise ConfigError(
                f"api_key_env = {variable!r}: its value cannot be a key (spaces or special characters)"
            )
        return cls(variable, value)

    def header(self) -> dict[str, str]:
        """The authorization header of a request."""
        return {"Authorization": f"Bearer {self._value}"}

    def scrub(self, text: str) -> str:
        """``text`` without the key; a key too short to be one is left, since removing it would garble text."""
        return text.replace(self._value, MASK) if len(self._value) >= _SHORTEST else text

    def __repr__(self) -> str:
        return f"Key(${self.variable})"


def scrub(text: str, key: Key | None = None) -> str:
    """``text`` without ``key`` and without anything that looks like a key: for messages of servers and libraries."""
    return _LOOKS_LIKE_A_KEY.sub(MASK, key.scrub(text) if key else text)
