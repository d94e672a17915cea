"""Settings of the kernel, and which of them are worth timing for a graph; a dispatcher keeps the fastest.

What decides, as measured on an H100: the features that are read at a time should fit the L2 cache, so that a block reads
128 or 256 bytes of a row; rows with neighbours in common should share an L1 cache, so that large blocks take many
consecutive rows; and small graphs should fill the device in one wave of blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from planish_accelgcn.work import ROW_COST
from planish_graph.graph import Graph

LARGEST_CHUNK = 64
"""Work of a thread; where a single wave gives it more, more and smaller chunks have always been faster."""
LARGEST_FLAT_WORK = 1 << 20
LONGEST_FLAT_ROW = 256
RESERVED = 2048
"""Bytes of shared memory that CUDA keeps for itself in a block, and those of the kernel's own variables."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How the product of one graph, width and type is computed.

    Attributes:
        line: bytes of a row of x that a block reads; 16 to 512, a power of two.
        unroll: gathers in flight a lane.
        threads, blocks: of a block, and blocks that a multiprocessor shall hold.
        chunk, segment, short: of the work lists (`planish_accelgcn.work.work`).
        one_wave: the chunk is chosen so that all blocks run at once; ``chunk`` is not used.
        flat: no work lists, a warp a row in row order; for graphs without long rows.
    """

    line: int = 128
    unroll: int = 4
    threads: int = 256
    blocks: int = 4
    chunk: int = 4096
    segment: int = 256
    short: int = 16
    one_wave: bool = False
    flat: bool = False


NAMED = {
    "256 B, flat": Setting(line=256, threads=128, blocks=8, flat=True),
    "512 B, flat": Setting(line=512, threads=128, blocks=8, flat=True),
    "128 B, one wave": Setting(threads=1024, blocks=1, one_wave=True),
    "128 B, one wave of small blocks": Setting(unroll=2, blocks=5, segment=64, one_wave=True),
    "256 B, one wave": Setting(line=256, threads=1024, blocks=1, one_wave=True),
    "256 B, one wave of small blocks": Setting(line=256, segment=64, one_wave=True),
    "128 B, chunks of 32k": Setting(threads=1024, blocks=1, chunk=32768, segment=512),
    "256 B, chunks of 32k": Setting(line=256, threads=1024, blocks=1, chunk=32768, segment=512),
    "128 B, chunks of 16k": Setting(threads=512, blocks=2, chunk=16384, segment=512, short=32),
    "128 B, chunks of 2k": Setting(unroll=2, blocks=5, chunk=2048, segment=128),
    "256 B, chunks of 4k": Setting(line=256, threads=512, blocks=2, segment=128),
    "256 B, chunks of 2k": Setting(line=256, chunk=2048, segment=128),
    "256 B, chunks of 1k": Setting(line=256, chunk=1024, segment=64),
    "128 B, chunks of 4k": Setting(),
}
FIXED = NAMED["128 B, chunks of 4k"]
"""Where results must be the same in every process, whatever is fastest."""


@cache
def known(device: torch.device) -> bool:
    """Whether the kernels are written for a device: loads that pass caches by need compute capability 8.0."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def shared_memory(device: torch.device, blocks: int) -> int:
    """Bytes that a block may have when a multiprocessor shall hold ``blocks`` of them; an eighth is left to the L1 cache."""
    properties: Any = torch.cuda.get_device_properties(device)
    space = properties.shared_memory_per_multiprocessor * 7 // 8 // blocks
    return int(min(space, properties.shared_memory_per_block_optin)) - RESERVED


def fitted(setting: Setting, graph: Graph, width: int, size: int) -> Setting | None:
    """The setting for a graph and features of ``width`` elements of ``size`` bytes; None where it is not worth timing."""
    lines = -(-width * size // setting.line)
    work = graph.num_edges + ROW_COST * graph.num_rows
    blocks = multiprocessors(graph.device) * setting.blocks
    if setting.line > 128 and width * size <= setting.line // 2:
        return None  # half of the lanes would have no column
    if setting.flat:
        short = graph.longest_row <= LONGEST_FLAT_ROW
        return setting if short and work < LARGEST_FLAT_WORK else None
    if not setting.one_wave:
        return setting if work // setting.chunk * lines >= blocks else None
    chunk = -(-work // max(1, blocks // lines))
    if chunk > LARGEST_CHUNK * setting.threads:
        return None
    return replace(setting, chunk=max(setting.segment, -(-chunk // 64) * 64))
