"""Sparsity patterns as text: "unstructured", "structured" or "N:M". Light: no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class NM:
    """Keep n of every m consecutive input columns."""

    n: int
    m: int

    @property
    def pruned(self) -> int:
        """Weights zeroed in a full group."""
        return self.m - self.n

    def pruned_of(self, columns: int) -> int:
        """Weights zeroed in a row of ``columns``: m - n a full group, r (m - n) // m in a last group of r columns."""
        full, tail = divmod(columns, self.m)
        return full * self.pruned + tail * self.pruned // self.m


def parse(text: str) -> NM | None:
    """The N:M pattern that ``text`` names, None for "unstructured" and "structured".

    Raises ValueError with one line that names the value and the choices.
    """
    if text in ("unstructured", "structured"):
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        raise ValueError(
            f'pattern {text!r} is not one of "unstructured", "structured" or "N:M" such as "2:4"'
        )
    n, m = int(match[1]), int(match[2])
    if not 1 <= n < m:
        raise ValueError(f'pattern {text!r} keeps {n} of {m}: "N:M" needs 1 <= N < M, such as "2:4"')
    return NM(n, m)
