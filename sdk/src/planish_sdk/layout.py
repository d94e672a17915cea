"""Find a block's attention and feed-forward, and read off what of them can be cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import nn

from planish.errors import PlanishError
from planish_sdk.views import WeightView, weight_views

# The names that decoders use for their projections; what their rows mean cannot be read off a shape.
_SEPARATE = (("q_proj", "k_proj", "v_proj"), ("wq", "wk", "wv"), ("query", "key", "value"))
_STACKED = ("qkv_proj", "c_attn", "Wqkv", "W_pack")  # all queries, then all keys, then all values
_BY_GROUP = ("query_key_value",)  # for each key-value head: its queries, its key, its value
_OUTPUT = ("o_proj", "out_proj", "dense", "c_proj", "wo")
_UP = ("gate_proj", "up_proj", "gate_up_proj", "fc1", "c_fc", "dense_h_to_4h", "w1", "w3", "fc_in")
_DOWN = ("down_proj", "fc2", "c_proj", "dense_4h_to_h", "w2", "fc_out")

HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
QUERIES_PER_KV = ("num_key_value_groups", "num_queries_per_kv")
# The width of all heads together. Older attention modules call it hidden_size or embed_dim, and reshape to it.
WIDTH = ("split_size", "all_head_size", "inner_dim", "hidden_size", "embed_dim")
_HEAD_DIM = ("head_dim", "head_size")
CHANNELS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "intermediate_dim")

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class AttentionGroups:
    """The attention of one block, as far as it can be cut.

    Attributes:
        path: the attention module within the block.
        num_heads, num_kv_heads, head_dim: its sizes; num_heads is a multiple of num_kv_heads.
        projections: paths of q, k and v, or of the one fused projection.
        output: path of the projection back to the model width.
        layout: how the rows of the projections are laid out.
    """

    path: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    projections: tuple[str, ...]
    output: str
    layout: Literal["separate", "stacked", "by_group"]

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """For each key-value head, its query heads."""
        size = self.num_heads // self.num_kv_heads
        return tuple(tuple(range(g * size, (g + 1) * size)) for g in range(self.num_kv_heads))


@dataclass(frozen=True)
class FfnChannels:
    """The feed-forward of one block: `count` channels between the `up` projections and `down`.

    `fused` says that the one up projection holds the gates' rows and then the ups' rows.
    """

    path: str
    count: int
    up: tuple[str, ...]
    down: str
    fused: bool


def attention_groups(block: nn.Module) -> AttentionGroups:
    """Find a block's attention and its groups: a key-value head with all its query heads.

    Raises:
        PlanishError: there is none, or more than one, or it is laid out in an unknown way.
    """
    views = weight_views(block)
    found = [
        item
        for parent, names in _by_parent(views).items()
        if (item := _attention(block, parent, names, views))
    ]
    return _only(found, "attention", block, views)


def ffn_channels(block: nn.Module) -> FfnChannels:
    """Find a block's feed-forward.

    Raises:
        PlanishError: there is none, or more than one, or it is a mixture of experts.
    """
    views = weight_views(block)
    if any(view.routed_by is not None for view in views.values()):
        raise PlanishError(
            f"{type(block).__name__}: its feed-forward is a mixture of experts; channels cannot be cut"
        )
    found = [item for parent, names in _by_parent(views).items() if (item := _ffn(parent, names, views))]
    return _only(found, "feed-forward", block, views)


def _by_parent(views: dict[str, WeightView]) -> dict[str, dict[str, str]]:
    """Module path -> name -> path of the matrices directly inside, experts left out."""
    parents: dict[str, dict[str, str]] = {}
    for path, view in views.items():
        if view.routed_by is None:
            parent, _, name = path.rpartition(".")
            parents.setdefault(parent, {})[name] = path
    return parents


def _attention(
    block: nn.Module, parent: str, names: dict[str, str], views: dict[str, WeightView]
) -> AttentionGroups | None:
    inputs: tuple[str, ...] = next((names_ for names_ in _SEPARATE if set(names_) <= set(names)), ())
    layout: Literal["separate", "stacked", "by_group"] = "separate"
    if not inputs:
        fused = next((name for name in (*_STACKED, *_BY_GROUP) if name in names), None)
        if fused is None:
            return None
        inputs, layout = (fused,), "stacked" if fused in _STACKED else "by_group"
    output = next((names[name] for name in _OUTPUT if name in names), None)
    if output is None:
        return None
    module = block.get_submodule(parent)
    head_dim = next((d for name in _HEAD_DIM if isinstance(d := getattr(module, name, None), int)), None)
    if head_dim is None:
        raise PlanishError(
            f"{parent or type(block).__name__}: has no head size ({', '.join(_HEAD_DIM)}); cannot cut heads"
        )
    projections = tuple(names[name] for name in inputs)
    num_heads = views[output].shape[1] // head_dim
    if layout == "separate":
        num_kv_heads = views[projections[1]].shape[0] // head_dim
    else:
        num_kv_heads = (views[projections[0]].shape[0] // head_dim - num_heads) // 2
    rows = sum(views[path].shape[0] for path in projections)
    if num_kv_heads < 1 or num_heads % num_kv_heads or rows != (num_heads + 2 * num_kv_heads) * head_dim:
        raise PlanishError(
            f"{parent or type(block).__name__}: {rows} projection rows do not fit {num_heads} heads of {head_dim}; cannot cut heads"
        )
    return AttentionGroups(parent, num_heads, num_kv_heads, head_dim, projections, output, layout)


def _ffn(parent: str, names: dict[str, str], views: dict[str, WeightView]) -> FfnChannels | None:
    up = tuple(names[name] for name in _UP if name in names)
    down = next((names[name] for name in _DOWN if name in names), None)
    if not up or down is None:
        return None
    count = views[down].shape[1]
    rows = {views[path].shape[0] for path in up}
    fused = len(up) == 1 and rows == {2 * count}
    return FfnChannels(parent, count, up, down, fused) if fused or rows == {count} else None


def _only(found: list[_Found], what: str, block: nn.Module, views: dict[str, WeightView]) -> _Found:
    if len(found) != 1:
        raise PlanishError(
            f"{type(block).__name__}: found {len(found)} {what} layouts that can be cut, needs one; matrices: {', '.join(views)}"
        )
    return found[0]
