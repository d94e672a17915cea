"""Full-batch training on one graph, an epoch at a time, in a state that can be saved and taken up again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planish_maxk.recompute import Recomputed

PASSED_OVER = -100


class Training:
    """Adam on the cross entropy of the training nodes; remembers the weights of the best validation epoch.

    Args:
        module: trained in place.
        batch: its inputs by name, on its device.
        y: [N] labels; nodes with a negative one are left out.
        train, validation: [N] boolean masks.
    """

    def __init__(
        self,
        module: nn.Module,
        batch: Mapping[str, Any],
        y: Tensor,
        train: Tensor,
        validation: Tensor,
        *,
        lr: float,
        weight_decay: float,
    ) -> None:
        self.module = module
        self.batch = batch
        self.y = y
        # Other nodes are passed over by the loss: picking out rows would wait for their number and scatter in the backward pass.
        self.target = torch.where(train & (y >= 0), y, PASSED_OVER)
        self.validation = validation & (y >= 0)
        self.optimizer = torch.optim.Adam(module.parameters(), lr=lr, weight_decay=weight_decay)
        self.best = -1
        self.best_state: dict[str, Tensor] = {}

    def step(self) -> Tensor:
        """One epoch: forward, backward, update. The loss [] before the update, detached."""
        self.module.train()
        self.optimizer.zero_grad()
        logits = self._logits().float()
        loss = F.cross_entropy(logits, self.target, ignore_index=PASSED_OVER)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    def epoch(self, seed: int, validate: bool = True) -> float:
        """One epoch whose dropout is drawn from ``seed``, then validation where asked for; the loss."""
        cuda = [self.y.device] if self.y.is_cuda else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(seed)
            loss = self.step()
        right = self.right(self.validation) if validate else self.best
        if right > self.best:
            self.best = right
            self.best_state = {name: t.clone() for name, t in self.module.state_dict().items()}
        return float(loss)

    def _logits(self) -> Tensor:
        """What tasks take for the logits, too: the output, its part of that name, or the first of several."""
        output = self.module(**self.batch)
        logits: Tensor | tuple[Tensor, ...] = getattr(output, "logits", output)
        return logits[0] if isinstance(logits, tuple) else logits

    def right(self, mask: Tensor) -> int:
        """Nodes in ``mask`` whose largest logit is the label's, in evaluation mode."""
        self.module.eval()
        with torch.no_grad():
            answers = self._logits()[mask].argmax(1)
        return int((answers == self.y[mask]).sum())

    def finish(self, keep: str) -> None:
        """Leave the module in evaluation mode with its last weights, or with the best ones."""
        if keep == "best" and self.best_state:
            self.module.load_state_dict(self.best_state)
        self.module.eval()

    def state(self) -> dict[str, Tensor]:
        """Everything that the next epoch depends on."""
        saved = {f"module.{name}": t for name, t in self.module.state_dict().items()}
        saved |= {f"best.{name}": t for name, t in self.best_state.items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            saved |= {f"adam.{number}.{name}": t for name, t in values.items()}
        return {**saved, "right": torch.tensor(self.best)}

    def resume(self, saved: Mapping[str, Tensor]) -> None:
        """Go on from a `state`."""
        device = self.y.device
        parts: dict[str, dict[str, Tensor]] = {"module": {}, "best": {}, "adam": {}}
        for name, tensor in saved.items():
            part, _, rest = name.partition(".")
            if part in parts:
                parts[part][rest] = tensor
        self.module.load_state_dict(parts["module"])
        self.best = int(saved["right"])
        self.best_state = {name: t.to(device) for name, t in parts["best"].items()}
        adam: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["adam"].items():
            number, _, rest = name.partition(".")
            adam.setdefault(int(number), {})[rest] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": adam})


def saved_bytes(module: nn.Module, batch: Mapping[str, Any]) -> int:
    """Bytes that one training forward pass keeps for its backward pass, counted from the tensors autograd saves and the
    inputs of what is recomputed.

    Weights, inputs and the graph's own tensors, which outlive the pass, are not counted: they are those that a second
    pass saves again at the same place while the first is still alive.
    """
    first: dict[int, int] = {}
    second: dict[int, int] = {}
    training = module.training
    module.train()
    try:
        module(**batch)  # what is built once, such as matrices, is built now
        outputs = []
        for seen in (first, second):
            note = _noting(seen)
            hooks = [
                part.register_forward_pre_hook(
                    lambda _, args, note=note: [note(t) for t in _tensors(args)] and None
                )
                for part in _recomputed(module)
            ]
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                outputs.append(module(**batch))
            for hook in hooks:
                hook.remove()
    finally:
        module.train(training)
    return sum(size for place, size in second.items() if place not in first)


def _recomputed(module: nn.Module) -> Iterator[Recomputed]:
    """A rewritten network does not register its traced graph."""
    for part in (module, module.__dict__.get("graph")):
        if isinstance(part, nn.Module):
            yield from (m for m in part.modules() if isinstance(m, Recomputed))


def _tensors(given: Any) -> Iterator[Tensor]:
    """The tensors among arguments, in compressed rows too."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, tuple):
        for part in given:
            yield from _tensors(part)


def _noting(seen: dict[int, int]) -> Callable[[Tensor], Tensor]:
    def note(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided:  # sparse ones are matrices, which outlive the pass
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    return note
