"""Trains gates and weights together until the target is reached, then the weights that are left.

The target is checked after every step: gates of one kind cross zero in the same few steps, so that an epoch's end would be
far too late. Reached or not by the last epoch of the search, the gates are then rounded to the target and frozen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from planish.context import Unit
from planish.errors import PlanishError
from planish_reram.mapping import is_transposed, matrix
from planish_reram_protect import gates, masks
from planish_reram_protect.gates import Gated
from planish_reram_protect.rounding import round_to

Loss = Callable[[Any], Tensor]
Batches = Callable[[torch.Generator], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Numbers of the search; see `planish_reram_protect.config.ReramProtectConfig` for what they mean."""

    target: float
    lr: float
    gate_lr: float = 0.03
    gate_start: float = 0.5
    penalty: float = 5.0
    penalty_gap: float = 20.0
    gate_epochs: int = 20
    tune_epochs: int = 10
    multiple: int = 1
    clip: float | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """The result of a search.

    Attributes:
        mask: which gates are open, bool [G].
        searched: sparsity at which the search stopped, before rounding.
        sparsity: after rounding.
        steps: steps of the search.
        reached: whether the search itself came to the target.
    """

    mask: Tensor
    searched: float
    sparsity: float
    steps: int
    reached: bool


def search(
    module: nn.Module,
    layers: Sequence[Gated],
    batches: Batches,
    loss: Loss,
    schedule: Schedule,
    generator: Callable[[str], torch.Generator],
    unit: Callable[[str], Unit] | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Found:
    """Prune ``module`` in place to the schedule's target: pruned weights become zeros, the others are trained.

    Args:
        layers: gates as `planish_reram_protect.coupling.couple` gives them.
        batches: an epoch's batches, for a generator.
        loss: the task's loss of one batch, with its graph.
        generator: seeded random generator of that name, on the CPU.
        unit: keeps an epoch's result, so that a killed search goes on after it.

    Raises:
        PlanishError: the loss is not finite, or the target is out of reach.
    """
    run = _Search(module, layers, loss, schedule)
    total = schedule.gate_epochs + schedule.tune_epochs
    names = [f"search {n}" for n in range(schedule.gate_epochs)] + [
        f"tune {n}" for n in range(schedule.tune_epochs)
    ]
    units = [unit(name) if unit else None for name in names]
    done = max((n for n, saved in enumerate(units) if saved and saved.done), default=-1)
    if done >= 0:
        run.restore(units[done])
    try:
        for number, name in enumerate(names):
            if number > done and not (run.frozen and name.startswith("search")):
                source = generator(name)
                torch.manual_seed(int(torch.randint(2**62, (1,), generator=source)))  # dropout of this epoch
                module.train()
                for batch in batches(source):
                    run.step(batch)
                if number == schedule.gate_epochs - 1:
                    run.freeze()
                run.keep(units[number])
            progress(number + 1, total, f"{name}, sparsity {run.sparsity:.3f}")
        run.freeze()
    finally:
        run.finish()
        module.eval()
    assert run.mask is not None
    return Found(run.mask, run.searched, run.sparsity, run.steps, run.reached)


class _Search:
    """The state of a search: gates, optimisers, and the masks on the module's weights while it lasts."""

    def __init__(self, module: nn.Module, layers: Sequence[Gated], loss: Loss, schedule: Schedule) -> None:
        self.module, self.loss, self.schedule = module, loss, schedule
        modules = {layer.name: module.get_submodule(layer.name) for layer in layers}
        views = {name: matrix(part) for name, part in modules.items()}
        self._transposed = {
            name for name, part in modules.items() if is_transposed(part)
        }  # masked, they look alike
        self.device = next(iter(views.values())).device
        self.layers = [
            replace(layer, rows=layer.rows.to(self.device), columns=layer.columns.to(self.device))
            for layer in layers
        ]
        self.counter = gates.Counter(layers, self.device)
        self.g = gates.start(layers, views, schedule.gate_start).to(self.device).requires_grad_()
        self.mask: Tensor | None = None
        self._frozen = torch.empty(0)
        self.steps, self.searched, self.reached = 0, 0.0, False
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.weights = torch.optim.AdamW(self.parameters, lr=schedule.lr)
        self.gates = torch.optim.SGD([self.g], lr=schedule.gate_lr)
        for layer in self.layers:
            masks.attach(modules[layer.name], layer, self.opened)
        self.sparsity = self.counter.sparsity(self.g)

    @property
    def frozen(self) -> bool:
        return self.mask is not None

    def opened(self) -> Tensor:
        """Masks of all gates and the 1 behind them."""
        return self._frozen if self.frozen else gates.opened(self.g)

    def step(self, batch: Any) -> None:
        """One step of both optimisers; the gates' until the target is reached."""
        value = self.loss(batch)
        if not self.frozen:
            found = self.sparsity
            share = self.counter.kept(self.opened()) / self.counter.total
            factor = gates.strength(
                found, self.schedule.target, self.schedule.penalty, self.schedule.penalty_gap
            )
            value = value + factor * share
        if not math.isfinite(value.item()):
            raise PlanishError(f"reram-protect: the training loss is {value.item()} at step {self.steps + 1}")
        self.weights.zero_grad()
        self.gates.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        self.weights.step()
        if self.frozen:
            self._clip()
            return
        self.gates.step()
        self.steps += 1
        with torch.no_grad():
            gates.keep_one(self.layers, self.g)
        self.sparsity = self.counter.sparsity(self.g)
        if self.sparsity >= self.schedule.target:
            self.reached = True
            self.freeze()

    def _clip(self) -> None:
        """Hold the kept weights of every matrix within ``clip`` of their standard deviations."""
        if self.schedule.clip is None:
            return
        with torch.no_grad():
            for layer, (rows, columns) in zip(self.layers, self._kept, strict=True):
                kept = self._matrix(layer.name)[rows][:, columns]
                if layer.name in self._sparse:
                    kept = kept[kept != 0]
                limit = self.schedule.clip * kept.std()  # a tensor: the host waits for nothing
                masked: Any = self.module.get_submodule(layer.name)
                masked.parametrizations.weight.original.clamp_(-limit, limit)

    def _matrix(self, name: str) -> Tensor:
        """The masked weight [out, in]."""
        masked: Any = self.module.get_submodule(name)
        weight: Tensor = masked.weight
        return weight.t() if name in self._transposed else weight.flatten(1)

    def freeze(self) -> None:
        """Round the gates to the target; from here on they do not move."""
        if self.frozen:
            return
        self.searched = self.sparsity
        self._settle(round_to(self.layers, self.g, self.schedule.target, self.schedule.multiple))
        self.sparsity = self.counter.sparsity(self._frozen[:-1])

    def _settle(self, mask: Tensor) -> None:
        """Take ``mask`` as final, and have ready on the device what every further step asks of it."""
        self.mask = mask
        self._frozen = torch.cat([mask, mask.new_ones(1)]).to(self.device, self.g.dtype)
        self._kept = [
            tuple(self._frozen[side].nonzero().flatten() for side in (layer.rows, layer.columns))
            for layer in self.layers
        ]
        with torch.no_grad():
            self._sparse = {  # an earlier method's zeros are no kept weights
                layer.name
                for layer, (rows, columns) in zip(self.layers, self._kept, strict=True)
                if not bool(self._matrix(layer.name)[rows][:, columns].all())
            }

    def finish(self) -> None:
        """Write the masks into the weights and take the parametrizations off."""
        for layer in self.layers:
            masks.detach(self.module.get_submodule(layer.name))

    def keep(self, unit: Unit | None) -> None:
        """Save all that the next epoch starts from."""
        if unit is None:
            return
        tensors = {f"module/{name}": tensor for name, tensor in self._state()}
        for number, state in self.weights.state_dict()["state"].items():
            tensors |= {f"adam/{number}/{key}": value for key, value in state.items()}
        tensors["g"] = self.g.detach()
        if self.mask is not None:
            tensors["mask"] = self.mask
        unit.save(
            tensors, steps=self.steps, searched=self.searched, sparsity=self.sparsity, reached=self.reached
        )

    def restore(self, unit: Unit | None) -> None:
        """Go on from what `keep` saved."""
        assert unit is not None
        saved, facts = unit.load(), unit.facts
        assert saved is not None
        with torch.no_grad():
            for name, tensor in self._state():
                tensor.copy_(saved[f"module/{name}"])
            self.g.copy_(saved["g"])
        if "mask" in saved:
            self._settle(saved["mask"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in saved.items():
            if name.startswith("adam/"):
                _, number, key = name.split("/")
                state.setdefault(int(number), {})[key] = tensor
        groups = self.weights.state_dict()["param_groups"]
        self.weights.load_state_dict({"state": state, "param_groups": groups})
        self.steps, self.searched = facts["steps"], facts["searched"]
        self.sparsity, self.reached = facts["sparsity"], facts["reached"]

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        """Stored parameters and buffers, each once."""
        seen: set[int] = set()
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor
