"""What tokens cost: a local file that the user edits. planish ships no prices, because they change and would be wrong."""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planish.config import validate
from planish.errors import ConfigError
from planish_promptv.models.protocol import Price


class Prices:
    """Prices by model name; names may hold ``*``. Of several that match, the longest counts.

    Args:
        table: name -> price.
    """

    def __init__(self, table: Mapping[str, Price] | None = None) -> None:
        self.table = dict(table or {})

    @classmethod
    def read(cls, path: Path | None) -> Prices:
        """Read a TOML file with one table a model: ``["gpt-*"]``, ``prompt = 2.5``, ``completion = 10.0``.

        Raises:
            ConfigError: the file cannot be read, or an entry is not a price.
        """
        if path is None:
            return cls()
        try:
            data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"prices = {str(path)!r}: {error}") from None
        table = {}
        for name, entry in data.items():
            if not isinstance(entry, dict):
                raise ConfigError(
                    f"prices = {str(path)!r}: [{name}] needs prompt and completion, in dollars a million"
                )
            table[name] = validate(Price, entry, f"prices = {str(path)!r}: [{name}]")
        return cls(table)

    def of(self, model: str) -> Price | None:
        """The price of ``model``, or None where the table does not know it."""
        matches = [name for name in self.table if fnmatch.fnmatchcase(model, name)]
        return self.table[max(matches, key=len)] if matches else None
