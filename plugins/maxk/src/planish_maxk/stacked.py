"""Networks of one shape trained beside each other, one a seed, as if each were alone.

Weights are stacked along a first axis, activations are [seeds, nodes, width], and aggregation works on one graph that
holds a copy of A for every seed. The loss is the sum of the seeds' losses and Adam works on every number by itself, so that
no seed sees another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planish_graph.graph import Graph, row_pointer
from planish_graph.spmm import spmm
from planish_maxk.cbsr import aggregate
from planish_maxk.layers import KeptDropout, MaxK, dense
from planish_maxk.nets import GraphNet


def copies(graph: Graph, count: int) -> Graph:
    """``count`` copies of a square graph along the diagonal of one."""
    shift = torch.arange(count, device=graph.device).repeat_interleave(graph.num_edges) * graph.num_rows
    degrees = graph.degrees.repeat(count)
    indices = graph.indices.repeat(count) + shift
    value = None if graph.value is None else graph.value.repeat(count)
    return Graph(
        row_pointer(degrees, graph.indptr.dtype),
        indices.to(graph.indptr.dtype),
        value,
        count * graph.num_rows,
    )


class Stacked(nn.Module):
    """The networks ``nets`` in one: x [N, F] (or a `Graph`) to logits [seeds, N, classes].

    Args:
        nets: of one shape.
        matrix: what they aggregate with, [N, N].
        k: entries kept of every row before aggregation; None is ReLU.
    """

    def __init__(self, nets: Sequence[GraphNet], matrix: Graph, k: int | None) -> None:
        super().__init__()
        first = nets[0]
        self.kind, self.width, self.blocks = first.kind, first.output.in_features, len(first.blocks)
        states = [net.state_dict() for net in nets]
        self.weights = nn.ParameterDict(
            {
                name.replace(".", "_"): nn.Parameter(torch.stack([s[name] for s in states]))
                for name in states[0]
            }
        )
        self.matrix = copies(matrix, len(nets))
        self.activation = MaxK(k)
        self.dropout = KeptDropout(first.blocks[0].dropout.p)  # type: ignore[union-attr, arg-type]

    def forward(self, x: Tensor | Graph) -> Tensor:
        h = self._project(x)
        for number in range(self.blocks):
            h = self._block(h, f"blocks_{number}")
        return self._linear(h, "output")

    def _project(self, x: Tensor | Graph) -> Tensor:
        weight, bias = self.weights["input_weight"], self.weights["input_bias"]  # [S, W, F], [S, W]
        side_by_side = weight.flatten(0, 1).T
        out: Tensor = x @ side_by_side if isinstance(x, Tensor) else spmm(x, side_by_side)
        return (out + bias.flatten()).unflatten(1, bias.shape).transpose(0, 1).contiguous()

    def _block(self, h: Tensor, name: str) -> Tensor:
        """As `planish_maxk.nets.Block`."""
        if self.kind != "sage":
            h = self._linear(h, f"{name}_linear")
        rows = self.dropout(self.activation(h.flatten(0, 1)))
        out = aggregate(self.matrix, rows).view(h.shape)
        if self.kind == "sage":
            out = self._linear(out, f"{name}_linear")
            out = out + dense(rows).view(h.shape) @ self.weights[f"{name}_root_weight"].mT
        elif self.kind == "gin":
            out = out + (1 + self.weights[f"{name}_eps"].view(-1, 1, 1)) * dense(rows).view(h.shape)
        scale, shift = (self.weights[f"{name}_norm_{part}"][:, None] for part in ("weight", "bias"))
        normed: Tensor = F.layer_norm(out, (self.width,)) * scale + shift
        return normed

    def _linear(self, h: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}_weight"], self.weights[f"{name}_bias"]
        return torch.baddbmm(bias[:, None], h, weight.mT)
