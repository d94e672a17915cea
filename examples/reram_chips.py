"""Put a trained network onto ten simulated ReRAM chips: accuracy of each, energy by part, area."""

import sys

import planish

out = sys.argv[1] if len(sys.argv) > 1 else "runs/reram"
result = (
    planish.Pipeline(seed=0)
    .then("reram", p_hrs=0.002, p_lrs=0.002, faults="none", mapping="offset", chips=10)
    .run("testbed:digits", out=out)
)
print(result.table())
for name, value in result.records[-1].facts.items():
    if isinstance(value, int | float):
        print(f"{name}: {value:.6g}")
print("report:", result.report)
