"""The nonlinearity in plain torch: exact top-k of every row, its layout, and the way back.

MaxK-GNN (Peng et al., ASPLOS 2024): keep the k largest values (not magnitudes) of each row, zero the rest; the
gradient passes where a value was kept. Compressed Balanced Sparse Row (CBSR): k values and k positions a row, no row
pointer. Ties, NaN and the order of positions are our choice, as documented here.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor

from planish.errors import DataError
from planish_graph import check

MAX_WIDTH = 1 << 16


def position_type(width: int) -> torch.dtype:
    """uint8 up to a width of 256, uint16 up to 65,536."""
    return torch.uint8 if width <= 256 else torch.uint16


def top_k(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row, by rising position.

    Exactly k entries always: of equal ones those in lower columns win, -0 equals 0, and NaN counts as largest, as in
    `torch.topk`.

    Args:
        x: [N, D].

    Returns:
        values [N, k] of x's type, positions [N, k] of `position_type`.
    """
    nan = x.isnan()
    kept = torch.topk(x, k, dim=1, sorted=False).values
    # Not the last of sorted ones: among NaN that is not always the smallest.
    limit = kept.masked_fill(kept.isnan(), math.inf).amin(1, keepdim=True)
    limit = torch.where(nan.sum(1, keepdim=True) < k, limit, math.nan)
    above = (x > limit) | (nan & ~limit.isnan())
    equal = (x == limit) | (nan & limit.isnan())
    wanted = k - above.sum(1, keepdim=True)
    if bool((equal.sum(1, keepdim=True) > wanted).any()):  # ties at the limit: those in lower columns win
        equal &= equal.cumsum(1) <= wanted
    index = (above | equal).nonzero()[:, 1].view(-1, k)  # exactly k a row, found from left to right
    return x.gather(1, index), index.to(position_type(x.shape[1]))


def expand(values: Tensor, index: Tensor, width: int) -> Tensor:
    """[N, width] with ``values`` [N, k] at ``index`` [N, k] and zeros elsewhere."""
    return values.new_zeros(values.shape[0], width).scatter(1, index.long(), values)


def checked(x: Any, k: Any) -> int:
    """k as a plain integer; raise for what `top_k` cannot take.

    Raises:
        DataError: x is not a floating-point matrix of 1 to 65,536 columns, or k is not within its width.
    """
    if not isinstance(x, Tensor):
        raise DataError(f"maxk: features of type {type(x).__name__}; valid: a torch tensor [N, D]")
    if x.layout != torch.strided:
        raise DataError(f"maxk: features are {check.short(x.layout)}; valid: a dense tensor [N, D]")
    if x.dim() != 2:
        raise DataError(f"maxk: features of shape {list(x.shape)}; valid: two dimensions [N, D]")
    if x.dtype not in check.FEATURES:
        raise DataError(
            f"maxk: features are {check.short(x.dtype)}; valid: float16, bfloat16, float32, float64"
        )
    width = x.shape[1]
    if width > MAX_WIDTH:
        raise DataError(f"maxk: width {width}; valid: at most {MAX_WIDTH}, positions have 16 bits")
    if width == 0:
        raise DataError("maxk: width 0; valid: at least 1 column")
    number = whole(k)
    if number is None or not 1 <= number <= width:
        raise DataError(
            f"maxk: k = {k!r}; valid: a whole number from 1 to {width}, the width of the features"
        )
    return number


def whole(k: Any) -> int | None:
    """k as an integer, from whatever counts as one but a truth value."""
    try:
        return None if isinstance(k, bool) else operator.index(k)
    except TypeError:
        return None


def within(index: Tensor, width: int) -> None:
    """Raise for positions outside 0 .. width - 1, which would lie in other rows. On a GPU nothing is read, since it would
    be waited for.

    Raises:
        DataError: naming the largest.
    """
    if index.device.type != "cpu" or index.numel() == 0 or width > torch.iinfo(index.dtype).max:
        return
    last = int(index.to(torch.int32).amax())
    if last >= width:
        raise DataError(f"positions run to {last}; valid: 0 to {width - 1} at width {width}")
