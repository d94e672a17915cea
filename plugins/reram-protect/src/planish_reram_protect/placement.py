"""Stage 3, the placement: where in the crossbars each copy lies.

A matrix [out, in] is cut into tiles of word lines (inputs) and bit lines (S neighbouring ones an output). Inside every tile
the kept outputs and inputs are moved together, kept_rows and kept_cols being the index that this needs, which leaves two free
rectangles a tile:

    +-----------+------+
    |   kept    | side |   side: freed bit lines on word lines that are driven anyway
    +-----------+------+
    |      below       |   below: word lines of pruned inputs
    +------------------+

Copies of a tile's cells go, in this order: side of the same tile, below of the same tile, then the first free cells of the
layer's other tiles, then of other layers' tiles. Everything is row-major, so the table of blocks says it all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from planish_reram_protect.budget import Kept, Rule


@dataclass(slots=True)
class Free:
    """A free rectangle; ``used`` cells of it are taken, row by row.

    ``tile`` counts tiles through the whole model, layer by layer and array by array, row-major.
    """

    tile: int
    row: int
    column: int
    height: int
    width: int
    used: int = 0

    @property
    def left(self) -> int:
        return self.height * self.width - self.used

    def take(self, count: int) -> Iterator[tuple[int, int, int, int]]:
        """Blocks (tile, row, column, height << 16 | width) that hold the next ``count`` cells."""
        self.used, start = self.used + count, self.used
        while count:
            row, offset = divmod(start, self.width)
            if offset or count < self.width:
                height, width = 1, min(count, self.width - offset)
            else:
                height, width = count // self.width, self.width
            yield self.tile, self.row + row, self.column + offset, height << 16 | width
            start += height * width
            count -= height * width


@dataclass(frozen=True, eq=False)
class Placement:
    """Where all copies lie.

    Attributes:
        blocks: by layer, int32 [n, 4] of (tile, first word line, first bit line, height << 16 | width). The cells of a layer's
            copies follow each other through its blocks, tile by tile of the original.
        homeless: cells that found no place.
        tiles: tiles of the whole model.
    """

    blocks: dict[str, Tensor]
    homeless: int
    tiles: int


@dataclass(frozen=True, eq=False)
class Tile:
    """One tile of one layer: its free rectangles and the copied cells that its own kept cells ask for."""

    layer: str
    free: tuple[Free, ...]
    wanted: int


def place(
    layers: Mapping[str, Kept],
    depth: Mapping[str, Tensor],
    rule: Rule,
    arrays: int,
    tile: tuple[int, int],
) -> Placement:
    """Where copies lie.

    Args:
        depth: protected slices of every kept output, uint8 [R] by layer.
        rule: the one by which ``depth`` was shared out.
        arrays: of the mapping. tile: (word lines, bit lines) of a crossbar.
    """
    tiles = [
        part
        for name, layer in layers.items()
        for part in _tiles(name, layer, depth[name], rule, arrays, tile)
    ]
    for number, part in enumerate(tiles):
        for free in part.free:
            free.tile = number
    blocks: dict[str, list[tuple[int, int, int, int]]] = {name: [] for name in layers}
    waiting: list[tuple[str, int]] = []
    for part in tiles:
        rest = _fill(blocks[part.layer], part.free, part.wanted)
        if rest:
            waiting.append((part.layer, rest))
    for own in (True, False) if rule.scope == "model" else (True,):
        still = []
        for name, rest in waiting:
            pool = [free for part in tiles if (part.layer == name) == own for free in part.free if free.left]
            if rest := _fill(blocks[name], pool, rest):
                still.append((name, rest))
        waiting = still
    tables = {name: torch.tensor(rows, dtype=torch.int32).reshape(-1, 4) for name, rows in blocks.items()}
    return Placement(tables, sum(rest for _, rest in waiting), len(tiles))


def _fill(blocks: list[tuple[int, int, int, int]], pool: Sequence[Free], count: int) -> int:
    """Put ``count`` cells into the rectangles of ``pool`` in order; returns those that found no room."""
    for free in pool:
        if not count:
            break
        taken = min(count, free.left)
        blocks.extend(free.take(taken))
        count -= taken
    return count


def _tiles(
    name: str, layer: Kept, depth: Tensor, rule: Rule, arrays: int, tile: tuple[int, int]
) -> Iterator[Tile]:
    """The tiles of one layer, row-major, once an array. Cells beyond the matrix's edge are not used."""
    out, into = layer.shape
    slices = rule.slices
    lines, across = tile[0], tile[1] // slices  # word lines, and outputs, of one tile
    for _ in range(arrays):
        for top in range(0, into, lines):
            height = min(lines, into - top)
            inputs = int(((layer.columns >= top) & (layer.columns < top + lines)).sum())
            for left in range(0, out, across):
                inside = (layer.rows >= left) & (layer.rows < left + across)
                width, outputs = min(across, out - left) * slices, int(inside.sum())
                side = Free(0, 0, outputs * slices, inputs, width - outputs * slices)
                below = Free(0, inputs, 0, height - inputs, width)
                wanted = rule.extra * int(depth[inside].sum()) * inputs
                yield Tile(name, tuple(free for free in (side, below) if free.left), wanted)
