"""The kernels in CUDA C++, built by NVRTC for the case at hand: top-k, forward, backward, and backward in fixed order.

The sources lie beside this file. A warp takes a unit of work: a row of the graph, or a piece of a long one. Sums are taken in
fp32 on chip in a fixed order, so that the forward pass repeats bit by bit. The backward pass adds atomically, unless
`torch.use_deterministic_algorithms` is on.
"""

from planish_maxk.cuda.build import usable
from planish_maxk.cuda.products import (
    MOST_GATHERED,
    WIDEST,
    Team,
    backward,
    backward_gathered,
    fits,
    fits_gather,
    forward,
    gathered,
)
from planish_maxk.cuda.rows import WIDEST_TOP_K, expand, pick, top_k
from planish_maxk.cuda.tiles import backward_tiles, divide_tiles, fits_tiles, forget_tiles, tile_rows
from planish_maxk.cuda.work import WINDOW, divide

__all__ = [
    "MOST_GATHERED",
    "WIDEST",
    "WIDEST_TOP_K",
    "WINDOW",
    "Team",
    "backward",
    "backward_gathered",
    "backward_tiles",
    "divide",
    "divide_tiles",
    "expand",
    "fits",
    "fits_gather",
    "fits_tiles",
    "forget_tiles",
    "forward",
    "gathered",
    "pick",
    "tile_rows",
    "top_k",
    "usable",
]
