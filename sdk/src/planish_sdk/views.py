"""One face for every prunable weight matrix: [d_out, d_in], however the module stores it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from planish.errors import PlanishError

__all__ = ["WeightView", "weight_views"]


@dataclass(frozen=True, eq=False)
class WeightView:
    """A [d_out, d_in] view on one weight matrix inside a decoder block.

    The matrix is a whole `nn.Linear` weight, a transformers `Conv1D` weight (stored [d_in, d_out]) or one
    expert's slice of a fused 3-D parameter ([E, d_out, d_in], or [E, d_in, d_out] when `transposed`).
    The view names its storage and does not hold it, so it stays valid when the block changes device or
    its weights are loaded anew.

    Attributes:
        name: stable within the block: `"self_attn.q_proj"`, `"mlp.experts.gate_up_proj[3]"`.
        module, attribute: where the stored parameter lives.
        expert: index into a fused parameter's first dimension, else None.
        transposed: stored as [d_in, d_out].
        tied: the same parameter is used at another place too.
        routed_by: the module that hands this matrix only the tokens routed to it; None when it sees all.
    """

    name: str
    module: nn.Module
    attribute: str = "weight"
    expert: int | None = None
    transposed: bool = False
    tied: bool = False
    routed_by: nn.Module | None = None

    @property
    def parameter(self) -> nn.Parameter:
        """The stored parameter, in its own layout."""
        parameter = getattr(self.module, self.attribute)
        assert isinstance(parameter, nn.Parameter)
        return parameter

    @property
    def family(self) -> str:
        """The name with expert numbers starred: all experts' slices of one projection share it."""
        return re.sub(r"\[\d+\]$|(?<=\.)\d+(?=\.)", "*", self.name)

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        rows, columns = self.parameter.shape[-2:]
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def dtype(self) -> torch.dtype:
        return self.parameter.dtype

    def stored(self) -> Tensor:
        """The matrix in its storage layout, sharing memory with the parameter."""
        weight = self.parameter.detach()
        return weight if self.expert is None else weight[self.expert]

    def read(self) -> Tensor:
        """The weight [d_out, d_in], sharing memory with the parameter (not contiguous when transposed)."""
        return self.stored().T if self.transposed else self.stored()

    def zero_(self, mask: Tensor) -> None:
        """Write zeros where `mask` [d_out, d_in] is True; every other weight keeps its bits.

        Raises:
            PlanishError: the mask is not boolean or not of the view's shape.
        """
        if mask.dtype != torch.bool or tuple(mask.shape) != self.shape:
            raise PlanishError(
                f"mask of {self.name}: got {mask.dtype} {list(mask.shape)}, needs torch.bool {list(self.shape)}"
            )
        weight = self.read()
        weight.masked_fill_(mask.to(weight.device), 0)


def weight_views(
    block: nn.Module, *, include_routers: bool = False, model: nn.Module | None = None
) -> dict[str, WeightView]:
    """Every linear weight inside `block`, by name, in the order of its modules.

    Embeddings, norms and convolutions are never included. The router of a mixture of experts (a matrix
    with one row an expert, or a one-row gate, beside the experts) only with `include_routers`. A parameter
    used twice inside the block is listed once, under its first name.

    Args:
        block: one decoder block.
        include_routers: list routers too.
        model: the whole model, so that `tied` also reports uses outside the block.

    Raises:
        PlanishError: a linear layer holds quantised (integer) weights.
    """
    uses = _uses(block if model is None else model)
    experts = _Experts(block)
    views: dict[str, WeightView] = {}
    listed: set[int] = set()
    for view in _candidates(block, experts, include_routers):
        parameter = view.parameter
        if id(parameter) in listed and view.expert in (None, 0):
            continue
        if not parameter.dtype.is_floating_point:
            raise PlanishError(
                f"weight of {view.name}: got quantised storage {parameter.dtype}; load the model in a float type"
            )
        listed.add(id(parameter))
        tied = uses[id(parameter)] > 1
        views[view.name] = WeightView(
            view.name, view.module, view.attribute, view.expert, view.transposed, tied, view.routed_by
        )
    return views


def _uses(root: nn.Module) -> Counter[int]:
    return Counter(id(parameter) for _, parameter in root.named_parameters(remove_duplicate=False))


def _candidates(block: nn.Module, experts: _Experts, include_routers: bool) -> Iterator[WeightView]:
    for path, module in block.named_modules():
        if path in experts.routers and not include_routers:
            continue
        routed_by = experts.routing_module(path)
        if isinstance(module, nn.Linear) or path in experts.routers:
            yield WeightView(path, module, routed_by=routed_by)
        elif _is_conv1d(module):
            yield WeightView(path, module, transposed=True, routed_by=routed_by)
        elif path in experts.fused:
            for attribute, parameter in _fused_parameters(module).items():
                for index in range(parameter.shape[0]):
                    yield WeightView(
                        _join(path, f"{attribute}[{index}]"),
                        module,
                        attribute,
                        index,
                        _stores_input_first(module),
                        routed_by=module,
                    )


class _Experts:
    """Where a block keeps its experts, and which matrices beside them are routers.

    Attributes:
        fused: paths of the modules that own 3-D expert parameters.
        lists: path of an expert `ModuleList` -> the module that routes tokens to its items.
        routers: paths of modules whose weight has one row an expert, or one row in all.
    """

    def __init__(self, block: nn.Module) -> None:
        self.fused: set[str] = set()
        self.lists: dict[str, nn.Module] = {}
        self.routers: set[str] = set()
        modules = dict(block.named_modules())
        for path, module in modules.items():
            if any(_inside(path, outer) for outer in self.lists):
                continue
            parent = path.rpartition(".")[0]
            if fused := _fused_parameters(module):
                self.fused.add(path)
                count = next(iter(fused.values())).shape[0]
                self.routers |= _router_paths(modules, parent, path, count)
            elif isinstance(module, nn.ModuleList) and len(module) > 1:
                # A list is one of experts only if a matrix beside it has a row for each item: lists of
                # attention heads or of branches have none.
                found = _router_paths(modules, parent, path, len(module))
                if any(_rows(modules[router]) == len(module) for router in found):
                    self.lists[path] = modules[parent]
                    self.routers |= found

    def routing_module(self, path: str) -> nn.Module | None:
        return next((router for outer, router in self.lists.items() if _inside(path, outer)), None)


def _router_paths(modules: dict[str, nn.Module], parent: str, experts: str, count: int) -> set[str]:
    return {
        path
        for path, module in modules.items()
        if _inside(path, parent)
        and path != experts
        and not _inside(path, experts)
        and (_rows(module) == count or (_rows(module) == 1 and isinstance(module, nn.Linear)))
    }


def _rows(module: nn.Module) -> int | None:
    weight = module._parameters.get("weight")
    if weight is None or weight.ndim != 2 or isinstance(module, nn.Embedding) or _is_conv1d(module):
        return None
    return weight.shape[0]


def _inside(path: str, outer: str) -> bool:
    return path != outer and (outer == "" or path.startswith(outer + "."))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_conv1d(module: nn.Module) -> bool:
    """transformers' Conv1D, recognised without importing transformers."""
    weight = module._parameters.get("weight")
    return type(module).__name__ == "Conv1D" and weight is not None and weight.ndim == 2


def _fused_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    if isinstance(module, nn.modules.conv._ConvNd):
        return {}
    return {name: p for name, p in module._parameters.items() if p is not None and p.ndim == 3}


def _stores_input_first(module: nn.Module) -> bool:
    """Whether a fused expert module stores [E, d_in, d_out].

    transformers 5 says so itself; otherwise a gated up projection is twice as wide as the down projection's
    input, which tells the two layouts apart: [2i, h] with [h, i], or [h, 2i] with [i, h].
    """
    declared = getattr(module, "is_transposed", None)
    if isinstance(declared, bool):
        return declared
    shapes = [tuple(p.shape[1:]) for p in _fused_parameters(module).values()]
    return any(b == 2 * c and a == d for a, b in shapes for c, d in shapes)
