"""Where every parameter lies in the flat vector that noise is indexed by.

Parameters are ordered by name, each starts at a multiple of `planish_kerzoo.noise.CHUNK`, and a shard of a parameter lies
where its elements lie in the whole: the vector does not depend on the order of groups or on the number of devices.
Nothing is gathered or moved; the vector exists as addresses only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from planish.errors import PlanishError
from planish_kerzoo.noise import CHUNK

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True, slots=True)
class Segment:
    """The local elements of one parameter.

    Attributes:
        name, parameter: as given.
        start: flat offset of the first local element. whole: flat offset where the parameter itself starts.
        group: index of its parameter group. index: its number in the order of names.
    """

    name: str
    parameter: nn.Parameter
    start: int
    whole: int
    group: int
    index: int

    @property
    def sharded(self) -> bool:
        """Whether other processes hold the rest of the parameter."""
        return hasattr(self.parameter, "to_local")

    def local(self) -> Tensor:
        """The local elements as a flat view of the parameter's storage."""
        return _local(self.parameter).view(-1)

    def gathered(self) -> Tensor:
        """The elements of the whole parameter, flat, from all processes that hold shards of it: each of them must call this."""
        whole = getattr(self.parameter, "full_tensor", self.parameter.detach)()
        return whole.detach().contiguous().view(-1)

    def address(self) -> int:
        """Where the local elements are in memory."""
        shard: Tensor = getattr(self.parameter, "_local_tensor", self.parameter)
        return shard.data_ptr()


def lay_out(named: Iterable[tuple[str, nn.Parameter, int]]) -> list[Segment]:
    """Segments of (name, parameter, group), by name; a parameter that has two names counts once, under the first.

    Raises PlanishError, naming the parameter: integers or complex numbers, memory that is not contiguous, a sharding other
    than by rows; and where nothing is left to train.
    """
    segments: list[Segment] = []
    seen: dict[tuple[int, int], str] = {}
    start = 0
    for name, parameter, group in sorted(named, key=lambda entry: entry[0]):
        if parameter.dtype not in FLOATING:
            raise PlanishError(
                f"parameter {name!r} is {_short(parameter.dtype)}: only float32, float16, bfloat16 and float64 can be "
                "trained; freeze it (requires_grad = False) or leave it out"
            )
        if not parameter.requires_grad:
            continue
        local = _local(parameter)
        if not local.is_contiguous():
            raise PlanishError(
                f"parameter {name!r} is not contiguous in memory; make it so with .contiguous()"
            )
        place = (local.data_ptr(), local.numel())
        if local.numel() and local.device.type != "meta" and seen.setdefault(place, name) != name:
            continue  # tied: the same memory under a second name
        segments.append(
            Segment(name, parameter, start + _first(name, parameter), start, group, len(segments))
        )
        start += -(-parameter.numel() // CHUNK) * CHUNK
    if not segments:
        raise PlanishError("no parameter to train: all are frozen (requires_grad = False), or none was given")
    return segments


def _local(parameter: Tensor) -> Tensor:
    to_local = getattr(parameter, "to_local", None)
    tensor: Tensor = parameter.detach() if to_local is None else parameter.detach().to_local()  # type: ignore[attr-defined]
    return tensor


def _first(name: str, parameter: Tensor) -> int:
    """Number of elements of the whole parameter before the first local one."""
    if not hasattr(parameter, "to_local"):
        return 0
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    assert isinstance(parameter, DTensor)
    for placement in parameter.placements:
        if not isinstance(placement, Replicate) and not (isinstance(placement, Shard) and placement.dim == 0):
            raise PlanishError(
                f"parameter {name!r} is placed as {placement}: only Shard(0) and Replicate are supported"
            )
    _, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    row = parameter.numel() // parameter.shape[0] if parameter.dim() and parameter.shape[0] else 1
    return int(offset[0]) * row if parameter.dim() else 0


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
