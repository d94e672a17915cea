"""The graph: a sparse matrix in CSR, with whatever was derived from it kept until it changes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from planish.errors import DataError
from planish_graph import check

T = TypeVar("T")
Stamp = tuple[int, ...]


class Plan(NamedTuple):
    """Plain tensors for the operators: A in CSR, and the structure of its transpose.

    ``t_entry`` [E] says which entry of A stands where in the transpose: ``value[t_entry]`` are its values.
    """

    indptr: Tensor
    indices: Tensor
    value: Tensor | None
    t_indptr: Tensor
    t_indices: Tensor
    t_entry: Tensor


@dataclass(slots=True)
class _Kept:
    """``values`` are those it was made from: as long as they live, no others can lie in their place."""

    stamp: Stamp
    made: Any
    values: Tensor | None


class _Cache(dict[Hashable, _Kept]):
    """What was derived from a structure. Shared by the graphs that differ in their values alone."""

    def __init__(self, indptr: Tensor, indices: Tensor, num_cols: int) -> None:
        super().__init__()
        self.indptr, self.indices, self.num_cols = indptr, indices, num_cols


_live: WeakValueDictionary[tuple[int, ...], _Cache] = WeakValueDictionary()


class Graph:
    """A sparse matrix A [num_rows, num_cols]; row i lists the sources that destination i gathers from: y = A x.

    Rectangular matrices (mini-batches), empty rows, duplicate entries (they add up) and absent values (all ones) are
    allowed. Indices may be int32 or int64 and keep their type (mixed, they become int64). What is derived from a graph (transpose, partitions,
    choices of kernels) is built on its device, kept on it, and thrown away when its tensors are written to or
    exchanged; the structure is checked again at the same time.

    Args:
        indptr: [num_rows + 1] integers, from 0 to E, not falling.
        indices: [E] integers in 0 .. num_cols - 1, in any order within a row.
        value: [E] floating-point numbers, or None for ones. May require gradients.
        num_cols: columns; by default as many as rows.

    Raises:
        DataError: naming the first thing that does not fit: type, device, shape, or an index out of range.
    """

    def __init__(
        self, indptr: Tensor, indices: Tensor, value: Tensor | None = None, num_cols: int | None = None
    ) -> None:
        check.types(indptr, indices, value)
        index = torch.promote_types(
            indptr.dtype, indices.dtype
        )  # never the narrower one, which could overflow
        self.indptr = _plain(indptr.to(index))
        self.indices = _plain(indices.to(index))
        self.value = None if value is None else _plain(value)
        self.num_rows = len(indptr) - 1
        self.num_cols = self.num_rows if num_cols is None else _integer(num_cols)
        self._kept = _Cache(self.indptr, self.indices, self.num_cols)
        check.fits(self.indptr.dtype, self.num_rows, self.num_cols, self.num_edges)
        self.checked()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles leave behind what was derived, which holds pointers into this process."""
        return Graph, (self.indptr, self.indices, self.value, self.num_cols)

    def __repr__(self) -> str:
        weights = "no weights" if self.value is None else str(self.value.dtype).removeprefix("torch.")
        index = str(self.indptr.dtype).removeprefix("torch.")
        return f"Graph({self.num_rows} x {self.num_cols}, {self.num_edges} entries, {index}, {weights}, {self.device})"

    @property
    def num_edges(self) -> int:
        """Stored entries E, duplicates included."""
        return self.indices.numel()

    @property
    def device(self) -> torch.device:
        return self.indptr.device

    @property
    def degrees(self) -> Tensor:
        """[num_rows] int64, entries a row."""
        return self.kept("degrees", lambda: self.indptr.diff().to(torch.int64))

    @property
    def longest_row(self) -> int:
        """Entries of the row that has most."""
        return self.kept("checked", self._check)

    def columns32(self) -> Tensor:
        """[E] the indices in int32, as kernels read them whatever the number of entries.

        Raises:
            DataError: more than 2^31 - 1 columns.
        """
        if self.indices.dtype == torch.int32:
            return self.indices
        check.fits(torch.int32, self.num_rows, self.num_cols, 0)
        return self.kept("columns32", lambda: self.indices.to(torch.int32))

    @property
    def rows(self) -> Tensor:
        """[E], the row of every entry."""
        return self.kept("rows", self._rows)

    def _rows(self) -> Tensor:
        numbers = torch.arange(self.num_rows, dtype=self.indptr.dtype, device=self.device)
        return numbers.repeat_interleave(self.degrees, output_size=self.num_edges)

    def values32(self) -> Tensor | None:
        """[E] the values in fp32 and without gradients, or None."""
        if self.value is None or self.value.dtype == torch.float32:
            return None if self.value is None else self.value.detach()
        value = self.value
        return self.kept("values32", lambda: value.to(torch.float32), values=True)

    def row_sum(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[num_rows] A 1, the sum of each row's values in ``dtype``; carries gradients of the values."""
        if self.value is None:
            return self.degrees.to(dtype)
        return torch.zeros(self.num_rows, dtype=dtype, device=self.device).index_add(
            0, self.rows.long(), self.value.to(dtype)
        )

    # ---- what is derived ----------------------------------------------------------------------------------------

    def kept(self, key: Hashable, build: Callable[[], T], *, values: bool = False) -> T:
        """What ``build()`` made for ``key``, built again once the structure (with ``values``: or a value) has changed.

        Inside `torch.compile` nothing is compared: call `plan` (or what else is needed) once before compiling.
        """
        found = self._kept.get(key)
        if torch.compiler.is_compiling() and found is not None:
            return cast("T", found.made)
        stamp = self._stamp(values)
        if found is None or found.stamp != stamp:
            with torch.inference_mode(False), torch.no_grad():
                held = self.value.detach() if values and self.value is not None else None
                found = self._kept[key] = _Kept(stamp, build(), held)
        return cast("T", found.made)

    def has(self, key: Hashable) -> bool:
        """Whether `kept` would find ``key`` without building it."""
        kept = self._kept.get(key)
        return kept is not None and kept.stamp == self._stamp(values=False)

    def keys(self) -> set[Hashable]:
        """What `kept` holds something for, in date or not."""
        return set(self._kept.copy())  # at once: other threads may add to it

    def forget(self, key: Hashable) -> None:
        """Free what `kept` made for ``key``."""
        self._kept.pop(key, None)

    def _stamp(self, values: bool) -> Stamp:
        structure = *_written(self.indptr), *_written(self.indices)
        return structure + _written(self.value) if values and self.value is not None else structure

    def checked(self) -> Graph:
        """This graph, after its structure was checked if it is new or was written to since.

        Raises:
            DataError: an index is out of range, or ``indptr`` is not a row pointer.
        """
        self.kept("checked", self._check)
        return self

    def _check(self) -> int:
        longest = check.structure(self.indptr, self.indices, self.num_cols)
        self._kept.indptr, self._kept.indices = self.indptr, self.indices
        self._enter()
        return longest

    def _enter(self) -> None:
        """Let `found` find this graph, unless it finds another one of the same tensors."""
        key = _place(self.indptr, self.indices, self.num_cols)
        if key is not None and _known(key) is None:
            _live[key] = self._kept

    def transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row pointer [num_cols + 1], columns [E] and entry numbers [E] of A^T; rows ascending in each of its rows."""
        return self.kept("transposed", self._transpose)

    def _transpose(self) -> tuple[Tensor, Tensor, Tensor]:
        entry = torch.argsort(self.indices, stable=True)
        counts = torch.bincount(self.indices, minlength=self.num_cols)
        return row_pointer(counts, self.indptr.dtype), self.rows[entry], entry.to(self.indptr.dtype)

    def plan(self) -> Plan:
        """The tensors that the operators take; see `Plan`."""
        transposed = self.kept("plan", self._plan)
        self._enter()  # another graph of these tensors may have been found until now, and be gone
        return Plan(self.indptr, self.indices, self.value, *transposed)

    def _plan(self) -> tuple[Tensor, Tensor, Tensor]:
        self.checked()
        transposed = self.transposed()
        # A graph of its own, so that `found` finds it in a backward pass.
        self.kept("transposed graph", lambda: Graph(*transposed[:2], num_cols=self.num_rows))
        return transposed

    # ---- other graphs -------------------------------------------------------------------------------------------

    def with_values(self, value: Tensor | None) -> Graph:
        """The same structure, and what was derived from it, with other values [E]."""
        check.types(self.indptr, self.indices, value)
        # What was derived is shared on purpose: what depends on values carries their stamp.
        return _view(self.indptr, self.indices, None if value is None else _plain(value), self._kept)

    def transpose(self) -> Graph:
        """A^T as a graph of its own."""
        indptr, indices, entry = self.transposed()
        value = None if self.value is None else self.value[entry.long()]
        return Graph(indptr, indices, value, self.num_rows)

    def to(
        self,
        device: torch.device | str | None = None,
        index: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
    ) -> Graph:
        """This graph on ``device`` with indices of type ``index`` and values of ``dtype``; None keeps what there is, and
        tensors that nothing changes are shared.

        Raises:
            DataError: int32 is asked for and the graph is beyond 2^31 - 1 rows, columns or entries.
        """
        index = index or self.indptr.dtype
        check.fits(index, self.num_rows, self.num_cols, self.num_edges)
        value = None if self.value is None else self.value.to(device, dtype)
        return Graph(self.indptr.to(device, index), self.indices.to(device, index), value, self.num_cols)

    def to_dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """[num_rows, num_cols]; duplicates add up. For tests and small graphs."""
        dense = torch.zeros(self.num_rows, self.num_cols, dtype=dtype, device=self.device)
        value = torch.ones(1, dtype=dtype, device=self.device) if self.value is None else self.value.to(dtype)
        place = (self.rows.long(), self.indices.long())
        return dense.index_put_(place, value.expand(self.num_edges), accumulate=True)

    def coalesced(self) -> Graph:
        """Duplicates merged (values added; a graph without values gets their number), columns sorted."""
        order = row_order(self.rows, self.indices)
        rows, cols = self.rows[order], self.indices[order]
        first = torch.ones(self.num_edges, dtype=torch.bool, device=self.device)  # of its place
        first[1:] = (rows.diff() != 0) | (cols.diff() != 0)
        value = torch.ones(self.num_edges, device=self.device) if self.value is None else self.value
        total = torch.zeros(int(first.sum()), dtype=value.dtype, device=self.device)
        total = total.index_add(0, first.cumsum(0) - 1, value[order])
        counts = torch.bincount(rows[first], minlength=self.num_rows)
        return Graph(row_pointer(counts, self.indptr.dtype), cols[first], total, self.num_cols)


def given(graph: Any) -> None:
    """Raise for what is no `Graph`."""
    if not isinstance(graph, Graph):
        raise DataError(
            f"graph: {type(graph).__name__}; valid: a Graph, which planish_graph.convert.as_graph makes of it"
        )


def found(indptr: Tensor, indices: Tensor, value: Tensor | None, num_cols: int) -> Graph | None:
    """The graph that these tensors are the structure of, with these values, if it still lives: how an operator, which
    is given plain tensors, gets at what was derived from the graph."""
    key = _place(indptr, indices, num_cols)
    cache = None if key is None else _known(key)
    return None if cache is None else _view(cache.indptr, cache.indices, value, cache)


def _known(key: tuple[int, ...]) -> _Cache | None:
    """What was derived from the structure at this place."""
    cache = _live.get(key)
    if cache is None or _place(cache.indptr, cache.indices, cache.num_cols) != key:  # exchanged since
        return None
    return cache


def _view(indptr: Tensor, indices: Tensor, value: Tensor | None, cache: _Cache) -> Graph:
    """A graph of tensors that were checked, with what was derived from them."""
    graph = object.__new__(Graph)
    graph.indptr = indptr
    graph.indices = indices
    graph.value = value
    graph.num_rows = len(indptr) - 1
    graph.num_cols = cache.num_cols
    graph._kept = cache
    return graph


def _integer(number: Any) -> int:
    try:
        return operator.index(number)
    except TypeError:
        raise DataError(f"graph: {number!r} columns; valid: an integer") from None


def _written(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor lies, and how often it was written to; nobody counts that of inference tensors."""
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version


def _place(indptr: Tensor, indices: Tensor, num_cols: int) -> tuple[int, ...] | None:
    """Where a structure lies in memory; no other can lie there while it lives. None for tensors without memory."""
    if indptr.device.type == "meta" or torch.compiler.is_compiling():
        return None
    try:
        return indptr.data_ptr(), indices.data_ptr(), len(indptr), len(indices), num_cols
    except RuntimeError:  # what torch traces with
        return None


def _plain(tensor: Tensor) -> Tensor:
    """Contiguous, and no inference tensor: autograd could not save that for a later training step."""
    if torch.compiler.is_compiling() or not tensor.is_inference():
        return tensor.contiguous()
    with torch.inference_mode(False):
        return tensor.clone(memory_format=torch.contiguous_format)


def row_pointer(counts: Tensor, dtype: torch.dtype) -> Tensor:
    """[R + 1] offsets of rows with ``counts`` [R] entries.

    Raises:
        DataError: they do not fit ``dtype``.
    """
    total = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=total[1:])
    if dtype == torch.int32 and total.device.type != "meta" and int(total[-1]) > check.INT32_MAX:
        raise DataError(f"graph: {int(total[-1])} entries do not fit int32 offsets; give int64 indices")
    return total.to(dtype)


def row_order(rows: Tensor, cols: Tensor) -> Tensor:
    """[E] the permutation that sorts entries by row, then by column, duplicates in their order.

    Two stable sorts need no product of row and width, which could overflow.
    """
    order = torch.argsort(cols, stable=True)
    return order[torch.argsort(rows[order], stable=True)]
