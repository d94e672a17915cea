"""An int8 multiply-accumulate unit that skips the zeros of an N:M sparse layer, checked against the dense product in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planish.errors import PlanishError
from planish_promptv.hardware.bench import vector_bench
from planish_promptv.hardware.rtl import template
from planish_promptv.types import Port, Task

if TYPE_CHECKING:
    from torch import Tensor

TOP = "nm_mac"
PATTERNS = ((1, 8), (1, 4), (2, 8), (1, 2), (2, 4), (4, 8))
"""N:M patterns that are looked for: the sparsest first, and of equally sparse ones the strictest."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer in int8.

    Attributes:
        name: where it stands in the model.
        weight: int8 [out, in], one scale a row (symmetric: largest magnitude of a row is 127).
        n, m: at most ``n`` of ``m`` consecutive weights of a row are not 0.
        error: root mean square of the quantisation error over that of the weights.
    """

    name: str
    weight: Tensor
    n: int
    m: int
    error: float

    @classmethod
    def of(cls, name: str, weight: Tensor) -> Layer | None:
        """The layer in int8, or None when it has none of `PATTERNS`."""
        pattern = find_pattern(weight)
        if pattern is None:
            return None
        import torch

        values = weight.detach().double().cpu()
        scale = values.abs().amax(1, keepdim=True) / 127
        rounded = torch.where(scale > 0, values / scale, 0.0).round()
        error = (rounded * scale - values).norm() / values.norm()
        return cls(name, rounded.to(torch.int8), *pattern, float(error))


def find_pattern(weight: Tensor) -> tuple[int, int] | None:
    """The sparsest of `PATTERNS` that every group of a matrix [out, in] holds, or None."""
    if weight.dim() != 2 or not weight.count_nonzero():
        return None
    for n, m in PATTERNS:
        if weight.shape[1] % m == 0 and int((weight != 0).view(-1, m).sum(1).max()) <= n:
            return n, m
    return None


def compress(group: Sequence[int], n: int) -> tuple[list[int], list[int]]:
    """(kept weights, their positions) of one group; filled up with zeros at positions that are free.

    Raises:
        PlanishError: more than ``n`` weights are not 0.
    """
    kept = [i for i, value in enumerate(group) if value]
    if len(kept) > n:
        raise PlanishError(f"a group holds {len(kept)} weights, {n} are allowed: {list(group)}")
    kept += [i for i, value in enumerate(group) if not value][: n - len(kept)]
    kept.sort()
    return [group[i] for i in kept], kept


def rtl(n: int, m: int) -> str:
    """The hand-written unit for the pattern ``n:m``; ``n = m`` is the dense one."""
    bits = index_bits(m)
    return template("nm_mac.v").substitute(
        N=n, M=m, XMSB=8 * m - 1, WMSB=8 * n - 1, IMSB=bits * n - 1, IBITS=bits
    )


def index_bits(m: int) -> int:
    """Bits of a position in a group of ``m``."""
    return max(1, (m - 1).bit_length())


def task(layer: Layer, vectors: int = 256, seed: int = 0) -> Task:
    """The unit for the layer's pattern as a design task; the vectors are rows of the layer with random int8 activations.

    Each row of the layer is a sum of its own; what must be in the accumulator after every group is the partial product of
    the dense int8 row in torch, so that the compressed format is checked as well.
    """
    n, m, bits = layer.n, layer.m, index_bits(layer.m)
    inputs = (
        Port(name="rst", direction="input"),
        Port(name="valid", direction="input"),
        Port(name="first", direction="input"),
        Port(name="x", direction="input", width=8 * m),
        Port(name="w", direction="input", width=8 * n),
        Port(name="index", direction="input", width=bits * n),
    )
    outputs = (Port(name="acc", direction="output", width=32, signed=True),)
    return Task(
        id=f"mac-{n}-{m}",
        description=describe(n, m),
        top_name=TOP,
        ports=(Port(name="clk", direction="input"), *inputs, *outputs),
        language="verilog2001",
        provided_testbench=vector_bench(TOP, inputs, outputs, _rows(layer, vectors, seed)),
        reference=rtl(n, m),
        benchmark="hardware",
        notes=(
            f"weights of {layer.name} {list(layer.weight.shape)}, int8 with one scale a row: "
            f"quantisation error {layer.error:.2%} of the weights (root mean square)",
        ),
    )


def _rows(layer: Layer, count: int, seed: int) -> list[tuple[int, ...]]:
    """(rst, valid, first, x, w, index, acc) a cycle."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    m, groups = layer.m, layer.weight.shape[1] // layer.m
    order = torch.randperm(layer.weight.shape[0], generator=generator).tolist()
    rows: list[tuple[int, ...]] = [(1, 0, 0, 0, 0, 0, 0)]
    last = taken = 0
    while len(rows) < count:
        # The extremes -128 and 127 come often enough to find a wrong sign extension.
        x = torch.randint(-160, 160, (groups * m,), generator=generator).clamp(-128, 127)
        weight = layer.weight[order[taken % len(order)]].to(torch.int64)
        taken += 1
        partial = (weight * x).view(groups, m).sum(1).cumsum(0).tolist()
        for group in range(groups):
            if len(rows) % 29 == 0:  # a cycle without data in between
                rows.append((0, 0, 1, 0, 0, 0, last))
            inside = slice(group * m, (group + 1) * m)
            kept, places = compress(weight[inside].tolist(), layer.n)
            last = partial[group]
            rows.append(
                (
                    0,
                    1,
                    int(group == 0),
                    _join(x[inside].tolist(), 8),
                    _join(kept, 8),
                    _join(places, index_bits(m)),
                    last,
                )
            )
    return rows[:count]


def _join(values: Sequence[int], bits: int) -> int:
    """Fields of ``bits`` bits, the first one lowest."""
    return sum((value & ((1 << bits) - 1)) << (bits * i) for i, value in enumerate(values))


def describe(n: int, m: int) -> str:
    """What a designer must be told."""
    bits = index_bits(m)
    return f"""Write a module {TOP}: a signed 8-bit multiply-accumulate unit for weights with {n}:{m} sparsity.

Ports: clk (rising edge), rst (synchronous, active high), valid, first, x ({8 * m} bits), w ({8 * n} bits) and
index ({bits * n} bits) are inputs; acc (signed, 32 bits) is a registered output.

x holds {m} activations, signed 8 bits each; activation i is x[8*i+7:8*i]. w holds the {n} weights of the group that may differ
from 0, signed 8 bits each; weight k is w[8*k+7:8*k], and its position in the group is the unsigned field k of index,
index[{bits}*k+{bits - 1}:{bits}*k].

When rst is high, acc becomes 0. Otherwise, when valid is low, acc keeps its value. When valid is high, acc becomes the sum over k of
weight k times the activation at its position, added to 0 if first is high and to the old acc otherwise.
"""
