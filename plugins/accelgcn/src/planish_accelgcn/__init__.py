"""Accel-GCN for planish: sparse-dense products for graph aggregation on NVIDIA GPUs.

This module stays light: it imports neither torch nor numpy. What users call lives in the submodules:
`planish_accelgcn.ops.spmm` and `planish_accelgcn.convolutions.accelerate`.
"""

from __future__ import annotations

from planish import Benchmark, hookimpl

__version__ = "0.1.0"


@hookimpl
def benchmarks() -> list[Benchmark]:
    return [
        Benchmark(
            name="accelgcn",
            target="planish_accelgcn.benchmark:rows",
            summary="SpMM beside the best cuSPARSE algorithm on a GPU, beside torch's CSR product on a CPU",
        )
    ]
