"""Prune a language model, export it, and see what was gained: the whole of planish in one expression."""

import sys

import planish

out = sys.argv[1] if len(sys.argv) > 1 else "runs/first"
result = (
    planish.Pipeline(seed=0)
    .then("ace", pattern="2:4", nsamples=16, seqlen=64)
    .then("onnx")
    .run("testbed:lm", out=out)
)
print(result.table())
print("report:", result.report)
