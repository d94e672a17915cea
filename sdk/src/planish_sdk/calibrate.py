"""Cut a token stream into equal calibration windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from planish.errors import DataError, PlanishError

__all__ = ["batches", "windows"]

Mode = Literal["random", "consecutive"]


def windows(
    token_ids: Tensor | Sequence[int], seqlen: int, nsamples: int, seed: int, *, mode: Mode = "random"
) -> Tensor:
    """`nsamples` windows of `seqlen` neighbouring tokens, int64 [nsamples, seqlen], on the CPU.

    Args:
        token_ids: one text, tokenised once, as a 1-D tensor or a sequence.
        seqlen: tokens in a window.
        nsamples: number of windows.
        seed: of the start positions; the same seed gives the same windows.
        mode: `"random"`: independent uniform starts, so windows may overlap (the protocol of SparseGPT and
            Wanda on C4); `"consecutive"`: side by side from the beginning, whatever the seed.

    Raises:
        PlanishError: a bad argument.
        DataError: fewer tokens than the windows need.
    """
    stream = torch.as_tensor(token_ids, dtype=torch.int64, device="cpu")
    if stream.ndim != 1:
        raise PlanishError(f"token_ids: got shape {list(stream.shape)}, needs one dimension")
    for name, value in (("seqlen", seqlen), ("nsamples", nsamples)):
        if value < 1:
            raise PlanishError(f"{name}: got {value}, needs at least 1")
    if mode not in get_args(Mode):
        raise PlanishError(f"mode: got {mode!r}, choose from {', '.join(get_args(Mode))}")
    needed = seqlen if mode == "random" else seqlen * nsamples
    if len(stream) < needed:
        count = "one window" if mode == "random" else f"{nsamples} windows side by side"
        raise DataError(f"token_ids: got {len(stream)} tokens, {count} of seqlen {seqlen} needs {needed}")
    if mode == "consecutive":
        return stream[:needed].reshape(nsamples, seqlen).clone()
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(stream) - seqlen + 1, (nsamples, 1), generator=generator)
    return stream[starts + torch.arange(seqlen)]


def batches(windows: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Pieces [at most batch_size, seqlen] of `windows` [nsamples, seqlen], in order.

    Raises:
        PlanishError: batch_size is below 1.
    """
    if batch_size < 1:
        raise PlanishError(f"batch_size: got {batch_size}, needs at least 1")
    yield from torch.split(windows, batch_size)
