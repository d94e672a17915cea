"""Sparse graphs for planish: one CSR type, conversions into it, work partitions, a dispatcher and generators.

This module stays light: it imports neither torch nor numpy. What users call lives in the submodules:
`planish_graph.graph.Graph`, `planish_graph.convert.as_graph`, `planish_graph.spmm.spmm`, `planish_graph.dispatch`.
"""

from __future__ import annotations

from planish import Benchmark, hookimpl

__version__ = "0.1.0"


@hookimpl
def benchmarks() -> list[Benchmark]:
    return [
        Benchmark(
            name="graph",
            target="planish_graph.benchmark:rows",
            summary="preprocessing in units of one SpMM, and the dispatcher's choice beside every candidate",
        )
    ]
