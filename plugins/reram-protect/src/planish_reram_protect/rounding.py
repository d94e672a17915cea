"""Stage 1, the end of the search: gates rounded to the exact target.

Gates of one kind cross zero in the same few steps, so the step that reaches the target overshoots it. The strongest of the closed
gates are opened again, one row or column at a time (or ``multiple`` of them).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from planish.errors import PlanishError
from planish_reram_protect.gates import OPEN, Gated


def round_to(layers: Sequence[Gated], g: Tensor, target: float, multiple: int = 1) -> Tensor:
    """The mask [G] (bool) with the sparsity nearest to ``target`` from above that follows the order of the gates.

    From the mask 1[g > 0] the weakest open gates are closed until the target is reached, then the strongest closed ones are
    opened as long as it stays reached. With ``multiple`` > 1 the open gates of every side are a multiple of it.

    Raises:
        PlanishError: even with the least that a matrix keeps, the target is out of reach.
    """
    state = _Rounding(layers, g.detach().cpu().double(), multiple)
    goal = (1.0 - target) * state.total
    order = sorted(state.chunks, key=lambda chunk: chunk.strength)
    for chunk in order:
        if state.kept <= goal:
            break
        if chunk.open and state.may_close(chunk):
            state.switch(chunk)
    if state.kept > goal:
        raise PlanishError(
            f"target = {target:g}: with at least {multiple} of every matrix's rows and columns kept, "
            f"{1 - state.kept / state.total:.3f} is the highest sparsity"
        )
    for chunk in reversed(order):
        if not chunk.open and state.kept + state.change(chunk) <= goal:
            state.switch(chunk)
    return state.mask


class _Chunk:
    """Gates that are rounded together, and how many rows or columns of each matrix side they switch."""

    def __init__(self, gates: Tensor, strength: float, is_open: bool) -> None:
        self.gates = gates
        self.strength = strength
        self.open = is_open
        self.sides: list[tuple[int, int]] = []  # (index of the side, rows or columns)


class _Rounding:
    """Counts of open rows and columns, kept up to date while chunks of gates are switched."""

    def __init__(self, layers: Sequence[Gated], g: Tensor, multiple: int) -> None:
        self.total = sum(layer.size for layer in layers)
        sides = [side.cpu() for layer in layers for side in (layer.rows, layer.columns)]
        self.mask = g > 0
        self.chunks = [
            chunk for family in _families(sides, len(g)) for chunk in self._cut(family, g, multiple)
        ]
        owner = torch.full((len(g) + 1,), -1, dtype=torch.long)  # the last entry is what `OPEN` finds
        for number, chunk in enumerate(self.chunks):
            owner[chunk.gates] = number
        is_open = torch.tensor([chunk.open for chunk in self.chunks])
        self.counts: list[int] = []  # open rows or columns of every side
        self.parts: list[int] = []  # open chunks of every side
        for number, side in enumerate(sides):
            found = torch.bincount(owner[side] + 1, minlength=len(self.chunks) + 1)
            free, still = int(found[0]), found[1:][is_open]
            self.counts.append(free + int(still.sum()))
            self.parts.append((free > 0) + int((still > 0).sum()))
            for index in found[1:].nonzero().flatten().tolist():
                self.chunks[index].sides.append((number, int(found[1 + index])))
        self.kept = sum(r * c for r, c in zip(self.counts[::2], self.counts[1::2], strict=True))

    def _cut(self, family: Tensor, g: Tensor, multiple: int) -> list[_Chunk]:
        """The family's gates by falling strength, ``multiple`` at a time; a chunk is open when its weakest gate is."""
        order = family[g[family].argsort(descending=True, stable=True)]
        chunks = []
        for number, gates in enumerate(order.split(multiple)):
            is_open = number == 0 or bool((g[gates] > 0).all())
            self.mask[gates] = is_open
            chunks.append(_Chunk(gates, float(g[gates].mean()), is_open))
        return chunks

    def change(self, chunk: _Chunk) -> int:
        """By how many weights switching the chunk changes what is kept."""
        sign = -1 if chunk.open else 1
        before = after = 0
        moved = dict(chunk.sides)
        for layer in {number // 2 for number in moved}:
            rows, columns = self.counts[2 * layer], self.counts[2 * layer + 1]
            before += rows * columns
            after += (rows + sign * moved.get(2 * layer, 0)) * (columns + sign * moved.get(2 * layer + 1, 0))
        return after - before

    def may_close(self, chunk: _Chunk) -> bool:
        return all(self.parts[number] > 1 for number, _ in chunk.sides)

    def switch(self, chunk: _Chunk) -> None:
        self.kept += self.change(chunk)
        sign = -1 if chunk.open else 1
        for number, size in chunk.sides:
            self.counts[number] += sign * size
            self.parts[number] += sign
        chunk.open = not chunk.open
        self.mask[chunk.gates] = chunk.open


def _families(sides: Sequence[Tensor], count: int) -> list[Tensor]:
    """Gates that occur on the same sides, which are the ones that may be rounded together: each a sorted int64 vector."""
    member: list[list[int]] = [[] for _ in range(count)]
    for number, side in enumerate(sides):
        for gate in side[side != OPEN].unique().tolist():
            member[gate].append(number)
    families: dict[tuple[int, ...], list[int]] = {}
    for gate, found in enumerate(member):
        families.setdefault(tuple(found), []).append(gate)
    return [torch.tensor(gates) for gates in families.values()]
