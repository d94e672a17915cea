"""From a language model to a circuit: prune it to 2:4, and write the multiply-accumulate unit that skips the zeros."""

import json
import sys

import planish

out = sys.argv[1] if len(sys.argv) > 1 else "runs/hardware"
result = (
    planish.Pipeline(seed=0)
    .then("ace", pattern="2:4", nsamples=16, seqlen=64)
    .then("promptv", vectors=256)  # generator="agents", base_url=..., model=... lets models write it
    .run("testbed:lm", out=out)
)
print(result.table())
print(json.dumps(result.records[-1].facts, indent=1))
print("circuits:", result.artifact.root)
print("report:", result.report)
