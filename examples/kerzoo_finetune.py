"""Fine-tune by forward passes alone, then rebuild the result from the base model and a log of a few kilobytes."""

import sys

import torch

import planish
from planish_kerzoo import KerZOO, RunLog, replay


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4))


out = sys.argv[1] if len(sys.argv) > 1 else "runs/kerzoo"
x = torch.randn(512, 16, generator=torch.Generator().manual_seed(1))
y = x[:, :4].argmax(dim=1)
data = planish.Tensors(values={"train_x": x[:384], "train_y": y[:384], "test_x": x[384:], "test_y": y[384:]})
task = planish.Classification(data=data, input="input")
options = {"kernel": "mezo", "sides": 1, "n": 8, "lr": 0.03}
result = planish.Pipeline(task=task).then("kerzoo", steps=200, batch=32, **options).run(network(), out=out)
print(result.table())

facts = result.records[0].facts
base = network()
steps = replay(RunLog(result.stages[0] / facts["log"]), KerZOO(base, **options))
tuned = result.load(module=network()).module
same = all(torch.equal(a, b) for a, b in zip(base.parameters(), tuned.parameters(), strict=True))
print(f"{steps} steps from a log of {facts['log bytes']} bytes, no forward pass: same weights: {same}")
