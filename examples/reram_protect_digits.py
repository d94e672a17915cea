"""A digits network on ten faulty crossbar chips, with its top bit slices stored three times in cells that pruning freed."""

import sys

import planish

out = sys.argv[1] if len(sys.argv) > 1 else "runs/reram-protect"
result = (
    planish.Pipeline(seed=0)
    .then("reram-protect", vote="bit", bias_correction="expected")
    .then("reram", faults="march_test", chips=10)
    .run("testbed:digits", out=out)
)
print(result.table())
facts = result.records[0].facts
for name in ("cells before", "cells after", "cells used by copies", "extra crossbars", "index bytes"):
    print(f"{name}: {facts[name]:,}")
print("report:", result.report)
