"""Which rows and columns share a gate.

Query and key share the rows of every head; rows of the value projection are columns of the output projection; rows of the
first feed-forward matrix are columns of the second. With grouped-query attention a key-value head and all its query heads
share, since they meet in one product. Rows that write into the residual stream have no gate; the columns that read it have
gates of their own in every matrix: a word line that is not driven takes nothing from other readers. Matrices outside such
blocks have gates of their own on both sides, and the rows of the network's last matrix have none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from planish.errors import PlanishError
from planish_reram_protect.gates import OPEN, Gated
from planish_sdk.blocks import find_blocks
from planish_sdk.surgery import AttentionGroups, FfnChannels, attention_groups, ffn_channels

# Encoders keep the output projection in a module of its own, so the decoder layouts of the SDK do not find it.
_ENCODER_ATTENTION = (
    (("attention.self.query", "attention.self.key", "attention.self.value"), "attention.output.dense"),
    (
        ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        "attention.output.dense",
    ),
    (("attention.q_lin", "attention.k_lin", "attention.v_lin"), "attention.out_lin"),
)
_ENCODER_FFN = (("intermediate.dense", "output.dense"), ("ffn.lin1", "ffn.lin2"))
_HEADS = ("num_attention_heads", "n_heads", "num_heads")


@dataclass
class _Numbering:
    """Hands out gate numbers."""

    count: int = 0

    def new(self, size: int) -> Tensor:
        self.count += size
        return torch.arange(self.count - size, self.count)


def couple(module: nn.Module, shapes: Mapping[str, tuple[int, int]], last: str) -> list[Gated]:
    """The gates of the matrices in ``shapes``.

    Args:
        module: the network; only shapes and names are looked at, so it may be on the meta device.
        shapes: (out, in) of every matrix that goes on a crossbar, by the path of its module.
        last: the matrix whose rows are the network's outputs.
    """
    numbers = _Numbering()
    rows: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    within: set[str] = set()
    for prefix, block in _blocks(module):
        within |= {name for name in shapes if name.startswith(f"{prefix}.")}
        if attention := _attention(block):
            _couple_attention(prefix, attention, shapes, numbers, rows, columns)
        if ffn := _feed_forward(block):
            _couple_ffn(prefix, ffn, shapes, numbers, rows, columns)
    coupled = set(rows)
    for name, (out, into) in shapes.items():
        if name not in rows:
            alone = not within and name != last
            rows[name] = numbers.new(out) if alone else torch.full((out,), OPEN)
        if name not in columns:
            columns[name] = numbers.new(into)
    return [Gated(name, rows[name], columns[name], name in coupled) for name in shapes]


def _blocks(module: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """The repeated blocks that hold attention, by path; none in other networks."""
    try:
        path, blocks = find_blocks(module)
    except PlanishError:
        return
    for index, block in enumerate(blocks):
        if _attention(block):
            yield f"{path}.{index}", block


def _attention(block: nn.Module) -> AttentionGroups | None:
    try:
        return attention_groups(block)
    except PlanishError:
        pass
    modules = dict(block.named_modules())
    for projections, output in _ENCODER_ATTENTION:
        if not {*projections, output} <= modules.keys():
            continue
        path = projections[0].rpartition(".")[0]
        heads = next((n for name in _HEADS if isinstance(n := getattr(modules[path], name, None), int)), 0)
        width = getattr(modules[projections[0]], "out_features", 0)
        if heads and width and width % heads == 0:
            return AttentionGroups(path, heads, heads, width // heads, projections, output, "separate")
    return None


def _feed_forward(block: nn.Module) -> FfnChannels | None:
    try:
        return ffn_channels(block)
    except PlanishError:
        pass
    modules = dict(block.named_modules())
    for up, down in _ENCODER_FFN:
        if {up, down} <= modules.keys():
            count = int(getattr(modules[down], "in_features", 0))
            return FfnChannels("", count, (up,), down, fused=False)
    return None


def _couple_attention(
    prefix: str,
    attention: AttentionGroups,
    shapes: Mapping[str, tuple[int, int]],
    numbers: _Numbering,
    rows: dict[str, Tensor],
    columns: dict[str, Tensor],
) -> None:
    names = [f"{prefix}.{path}" for path in attention.projections]
    output = f"{prefix}.{attention.output}"
    if not {*names, output} <= shapes.keys():
        return  # a part of it is not on crossbars: no channel can be dropped on both sides
    heads, groups, width = attention.num_heads, attention.num_kv_heads, attention.head_dim
    matched = numbers.new(groups * width).view(groups, width)  # query against key
    passed = numbers.new(groups * width).view(groups, width)  # value to output
    a_head = heads // groups
    queries = matched.repeat_interleave(a_head, 0)
    if attention.layout == "separate":
        for name, side in zip(names, (queries, matched, passed), strict=True):
            rows[name] = side.flatten()
    elif attention.layout == "stacked":
        rows[names[0]] = torch.cat([queries, matched, passed]).flatten()
    else:
        parts = [queries.view(groups, a_head, width), matched[:, None], passed[:, None]]
        rows[names[0]] = torch.cat(parts, 1).flatten()
    columns[output] = passed.repeat_interleave(a_head, 0).flatten()


def _couple_ffn(
    prefix: str,
    ffn: FfnChannels,
    shapes: Mapping[str, tuple[int, int]],
    numbers: _Numbering,
    rows: dict[str, Tensor],
    columns: dict[str, Tensor],
) -> None:
    names = [f"{prefix}.{path}" for path in ffn.up]
    down = f"{prefix}.{ffn.down}"
    if not {*names, down} <= shapes.keys():
        return
    channels = numbers.new(ffn.count)
    for name in names:
        rows[name] = channels.repeat(2) if ffn.fused else channels
    columns[down] = channels
