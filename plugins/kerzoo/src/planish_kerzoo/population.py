"""Many fine-tuning runs at once, for comparisons at equal forward passes.

A run is a task, a seed and a learning rate. All runs of one call share the estimator; runs of one seed share directions and
radii, so that tasks and learning rates are compared on common random numbers. What a step does is what `KerZOO` does with
``restore="exact"``: the same samples, differences and update.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from planish_kerzoo import noise
from planish_kerzoo.capture import Repeated
from planish_kerzoo.estimator import Estimator
from planish_kerzoo.noise import CHUNK, Distribution
from planish_kerzoo.prompts import Prompts
from planish_kerzoo.stacked import StackedLlama
from planish_kerzoo.sweep import triton_kernels

OBJECTIVE = 256
"""Training examples that the objective is measured on, at most."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run: index of its task, seed of data order and directions, learning rate."""

    task: int
    seed: int
    lr: float


@dataclass(frozen=True)
class Curves:
    """What the runs came to: forwards [E], and by evaluation and run [E, R] the training objective over (at most 256)
    training examples, the loss on the test set, and accuracy there; the worst loss of any step [R]; and objective, test loss and
    accuracy [3, R] of the mean of the weights after each step of the last half. A run that diverged has infinite loss."""

    forwards: list[int]
    objective: Tensor
    test_loss: Tensor
    accuracy: Tensor
    worst: Tensor
    averaged: Tensor


@dataclass(frozen=True)
class _State:
    """What runs carry from step to step, all of it on the device: weights and their mean over the last half of the steps [R, size],
    the worst loss so far [R], and the number of the step [1]."""

    theta: Tensor
    mean: Tensor
    worst: Tensor
    at: Tensor
    steps: int

    @classmethod
    def of(cls, theta: Tensor, steps: int) -> _State:
        zeros = torch.zeros(len(theta), device=theta.device)
        at = torch.zeros(1, dtype=torch.long, device=theta.device)
        return cls(theta, torch.zeros_like(theta), zeros, at, steps)

    def after(self, losses: Tensor) -> None:
        """A step with these losses [R] has changed theta."""
        torch.maximum(self.worst, losses.nan_to_num(torch.inf), out=self.worst)
        begin = self.steps // 2
        share = (self.at >= begin).float() / (self.steps - begin)
        self.mean.addcmul_(self.theta, share)
        self.at.add_(1)


class Population:
    """The runs of one model on several tasks.

    Args:
        shape, start: the model and its weights [size].
        tasks: prompts of every task, on the device.
        batch: samples a step.
    """

    def __init__(self, shape: StackedLlama, start: Tensor, tasks: Sequence[Prompts], batch: int = 16) -> None:
        self.shape, self.start, self.batch = shape, start, batch
        self.tasks = tasks
        most = max(len(task.words) for task in tasks)
        self.words = torch.stack([F.pad(task.words, (0, most - len(task.words))) for task in tasks])
        self.hidden = torch.stack([torch.arange(most, device=start.device) >= len(t.words) for t in tasks])
        self.first = torch.tensor([0, *(len(task.ids) for task in tasks)]).cumsum(0)[:-1]
        self.ids = torch.cat([task.ids for task in tasks])
        self.last = torch.cat([task.last for task in tasks])
        self.label = torch.cat([task.label for task in tasks])

    @torch.no_grad()
    def zeroth_order(
        self,
        runs: Sequence[Run],
        estimator: Estimator,
        eps: float,
        forwards: int,
        evaluations: int = 8,
        u: Distribution = "gaussian",
        per_tensor: bool = False,
    ) -> Curves:
        """Train with ``forwards`` losses a run, each of one batch. The seeds must have equally many runs each.

        per_tensor: an r for every tensor, as in the authors' code.
        """
        runs, back = _by_seed(runs)
        seeds = sorted({run.seed for run in runs})
        device = self.start.device
        steps = forwards // estimator.forwards
        theta = self.start.repeat(len(runs), 1)
        groups = theta.view(len(seeds), -1, self.shape.size)  # the runs of a seed share its directions
        lr = torch.tensor([run.lr for run in runs], device=device).view(len(seeds), -1, 1)
        order = self._order(runs, steps)
        keys, radii, weights = self._plan(estimator, seeds, steps, per_tensor)
        state = _State.of(theta, steps)
        at = state.at

        def step() -> None:
            rows, key, radius, weight = (x.index_select(0, at)[0] for x in (order, keys, radii, weights))
            losses, directions = [], []
            if estimator.unperturbed:
                losses.append(self._loss(theta, runs, rows))
            for i in range(estimator.n):
                direction = self._directions(key[i], u)
                directions.append(direction)
                change = (self._spread(eps * radius[i]) * direction)[:, None]
                for sign in (1, -1)[: estimator.sides]:
                    moved = torch.add(groups, change, alpha=sign).view(theta.shape)
                    losses.append(self._loss(moved, runs, rows))
            means = torch.stack(losses).double()  # [F, R]
            d = estimator.differences(means, eps)
            d = torch.where(d.isfinite(), d, 0).view(estimator.n, *lr.shape)
            for i, direction in enumerate(directions):
                groups.addcmul_((self._spread(weight[i]) * direction)[:, None], d[i] * lr, value=-1)
            state.after(means.amax(0).float())

        return self._train(Repeated(step, device), state, estimator.forwards, evaluations, runs, back)

    def first_order(self, runs: Sequence[Run], steps: int, evaluations: int = 8) -> Curves:
        """AdamW, the ceiling: a step costs a forward and a backward pass, counted as three forwards."""
        runs, back = _by_seed(runs)
        theta = self.start.repeat(len(runs), 1).requires_grad_()
        mean, square = torch.zeros_like(theta), torch.zeros_like(theta)
        lr = torch.tensor([run.lr for run in runs], device=theta.device)[:, None]
        order = self._order(runs, steps)
        state = _State.of(theta.detach(), steps)
        at = state.at

        def step() -> None:
            losses = self._loss(theta, runs, order.index_select(0, at)[0])
            (gradient,) = torch.autograd.grad(losses.sum(), theta)
            with torch.no_grad():
                mean.lerp_(gradient, 0.1)
                square.lerp_(gradient.square(), 0.001)
                scale = (square / (1 - 0.999 ** (at + 1))).sqrt_().add_(1e-8)
                theta.sub_(lr * (mean / (1 - 0.9 ** (at + 1)) / scale + 0.01 * theta))
                state.after(losses)

        return self._train(Repeated(step, theta.device), state, 3, evaluations, runs, back)

    def _train(
        self,
        step: Callable[[], None],
        state: _State,
        forwards: int,
        evaluations: int,
        runs: Sequence[Run],
        back: Tensor,
    ) -> Curves:
        """Call ``step`` and look at theta now and then; results in the order in which the runs were given."""
        steps = state.steps
        marks = {steps * (k + 1) // evaluations for k in range(evaluations)} if steps else set()
        found = [(0, *self._evaluate(state.theta, runs))]
        for number in range(1, steps + 1):
            step()
            if number in marks:
                found.append((number * forwards, *self._evaluate(state.theta, runs)))
        places, *values = zip(*found, strict=True)
        objective, test_loss, accuracy = (torch.stack(value)[:, back] for value in values)
        averaged = torch.stack(self._evaluate(state.mean, runs))[:, back]
        return Curves(list(places), objective, test_loss, accuracy, state.worst.cpu()[back], averaged)

    def _plan(
        self, estimator: Estimator, seeds: Sequence[int], steps: int, per_tensor: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Seeds of directions [steps, n, S], radii and weights [steps, n, S, 1], or for each tensor instead of 1."""
        tensors = len(self.shape.places)
        keys, radii, weights = [], [], []
        for step in range(steps):
            for drawn in zip(*(estimator.samples(seed, step) for seed in seeds), strict=True):
                slots = [estimator.per_tensor(s, step, tensors) if per_tensor else [s] for s in drawn]
                keys.append([noise.as_int64(s.seed) for s in drawn])
                radii.append([[slot.r for slot in row] for row in slots])
                weights.append([[slot.weight for slot in row] for row in slots])
        device, shape = self.start.device, (steps, estimator.n, len(seeds))
        return (
            torch.tensor(keys, device=device).view(shape),
            torch.tensor(radii, device=device).view(*shape, -1),
            torch.tensor(weights, device=device).view(*shape, -1),
        )

    def _spread(self, values: Tensor) -> Tensor:
        """[S, 1] as it is, a value a tensor [S, tensors] as one an element [S, size]."""
        return values if values.shape[1] == 1 else values[:, self._tensor]

    @functools.cached_property
    def _tensor(self) -> Tensor:
        """Number of the tensor that each element of the flat vector belongs to."""
        starts = torch.tensor([start for start, _ in self.shape.places.values()])
        return (torch.bucketize(torch.arange(self.shape.size), starts, right=True) - 1).to(self.start.device)

    def _directions(self, keys: Tensor, u: Distribution) -> Tensor:
        chunks = self.shape.size // CHUNK
        made = triton_kernels() if keys.is_cuda else None
        found: Tensor = (noise if made is None else made).directions(keys, 0, chunks, u)
        return found

    def _order(self, runs: Sequence[Run], steps: int) -> Tensor:
        """Rows of the examples of every step [steps, R, B]: a function of task and seed."""
        drawn: dict[tuple[int, int], Tensor] = {}
        for run in runs:
            if (run.task, run.seed) not in drawn:
                generator = torch.Generator().manual_seed(1000 * run.seed + run.task)
                high = self.tasks[run.task].train
                picks = torch.randint(high, (steps, self.batch), generator=generator)
                drawn[run.task, run.seed] = picks + self.first[run.task]
        return torch.stack([drawn[run.task, run.seed] for run in runs], 1).to(self.start.device)

    def _answers(self, theta: Tensor, runs: Sequence[Run], rows: Tensor) -> Tensor:
        words, hidden = self._labels(tuple(run.task for run in runs))
        logits = self.shape.answers(theta, self.ids[rows], self.last[rows], words)
        return logits.masked_fill(hidden, -torch.inf)

    @functools.lru_cache(maxsize=16)
    def _labels(self, of: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Label words [R, K] of each run's task, and which of them are only padding [R, 1, K]."""
        task = torch.tensor(of, device=self.start.device)
        return self.words[task], self.hidden[task][:, None]

    def _loss(self, theta: Tensor, runs: Sequence[Run], rows: Tensor) -> Tensor:
        """Cross entropy over the label words, [R]."""
        logits = self._answers(theta, runs, rows)
        losses = F.cross_entropy(logits.flatten(0, 1), self.label[rows].flatten(), reduction="none")
        return losses.view(rows.shape).mean(1)

    @torch.no_grad()
    def _evaluate(self, theta: Tensor, runs: Sequence[Run]) -> tuple[Tensor, Tensor, Tensor]:
        """(objective, test loss, test accuracy) [R] each."""
        result = []
        of = torch.tensor([run.task for run in runs], device=theta.device)
        for rows, counted in (self._objective, self._test):
            losses, right = [], []
            for some in torch.split(rows[of], 64, 1):
                logits = self._answers(theta, runs, some)
                label = self.label[some]
                loss = F.cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="none")
                losses.append(torch.where(loss.isfinite(), loss, torch.inf).view(label.shape))
                right.append(logits.argmax(-1) == label)
            count = counted[of].sum(1)
            loss = torch.cat(losses, 1).masked_fill(~counted[of], 0).sum(1) / count
            result += [loss, (torch.cat(right, 1) & counted[of]).sum(1) / count]
        objective, _, loss, accuracy = (value.cpu() for value in result)
        return objective, loss, accuracy

    @functools.cached_property
    def _objective(self) -> tuple[Tensor, Tensor]:
        return self._examples([(0, min(task.train, OBJECTIVE)) for task in self.tasks])

    @functools.cached_property
    def _test(self) -> tuple[Tensor, Tensor]:
        return self._examples([(task.train, len(task.ids)) for task in self.tasks])

    def _examples(self, bounds: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Rows of the examples of every task [tasks, M], M the most of any, and whether they are more than padding."""
        most = max(end - begin for begin, end in bounds)
        begin, end = torch.tensor(bounds).T[..., None]
        rows = torch.arange(most) + begin
        first = self.first[:, None] + torch.minimum(rows, end - 1)
        return first.to(self.start.device), (rows < end).to(self.start.device)


def _by_seed(runs: Sequence[Run]) -> tuple[list[Run], Tensor]:
    """The runs sorted by seed, and the place of every given run among them."""
    order = sorted(range(len(runs)), key=lambda index: runs[index].seed)
    return [runs[index] for index in order], torch.tensor(order).argsort()
