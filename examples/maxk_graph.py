"""A graph network: ReLU before aggregation becomes top-k, then accuracy, epoch time and activations on both sides."""

import sys

import planish

out = sys.argv[1] if len(sys.argv) > 1 else "runs/maxk"
result = planish.Pipeline(seed=0).then("maxk", k=16, epochs=60, timing_rounds=5).run("testbed:graph", out=out)
print(result.table())
for name, value in result.records[0].facts.items():
    print(f"{name}: {value}")
