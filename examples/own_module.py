"""A torch module of your own: its weights are kept, and the module is given again to reopen the artifact."""

import sys

import torch

import planish

out = sys.argv[1] if len(sys.argv) > 1 else "runs/own"
torch.manual_seed(0)
module = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
x = torch.randn(256, 16)
y = x[:, :4].argmax(dim=1)
optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
for _ in range(200):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(module(x), y).backward()
    optimizer.step()

data = planish.Tensors(values={"train_x": x, "train_y": y, "test_x": x, "test_y": y})
task = planish.Classification(data=data, input="input")
result = planish.Pipeline(task=task).then("onnx").run(module.eval(), out=out)
print(result.table())
reopened = result.start.load(given=module)
print("reopened:", type(reopened.module).__name__)
