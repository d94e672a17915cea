"""Many fine-tuning runs at once, for comparisons at equal forward passes.

A run is a task, a seed and a learning rate. All runs of one call share the estimator; runs of one seed share directions and
radii, so that tasks and learning rates are compared on common random numbers. What a step does is what `KerZOO` does with
``restore="exact"``: the same samples, differences and update.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from planish_kerzoo import noise
from planish_kerzoo.estimator import Estimator
from planish_kerzoo.noise import CHUNK, Distribution
from planish_kerzoo.prompts import Prompts
from planish_kerzoo.stacked import StackedLlama


@dataclass(frozen=True, slots=True)
class Run:
    """One run: index of its task, seed of data order and directions, learning rate."""

    task: int
    seed: int
    lr: float


@dataclass(frozen=True)
class Curves:
    """What the runs came to: forwards [E], and by evaluation and run [E, R] the training objective over (at most 256)
    training examples, the loss on the test set, and accuracy there. A run that diverged has infinite loss."""

    forwards: list[int]
    objective: Tensor
    test_loss: Tensor
    accuracy: Tensor


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
    ) -> Curves:
        """Train with ``forwards`` losses a run, each of one batch."""
        theta = self.start.repeat(len(runs), 1)
        seeds = sorted({run.seed for run in runs})
        of = torch.tensor([seeds.index(run.seed) for run in runs], device=theta.device)
        lr = torch.tensor([run.lr for run in runs], device=theta.device)
        steps = forwards // estimator.forwards
        order = self._order(runs, steps)
        marks = {steps * (k + 1) // evaluations for k in range(evaluations)} if steps else set()
        found = [(0, *self._evaluate(theta, runs))]
        for step in range(steps):
            batch = order[step]
            drawn = [estimator.samples(seed, step) for seed in seeds]
            losses, directions = [], []
            if estimator.unperturbed:
                losses.append(self._loss(theta, runs, batch))
            for i in range(estimator.n):
                keys = torch.tensor([noise.as_int64(s[i].seed) for s in drawn], device=theta.device)
                direction = noise.directions(keys, 0, self.shape.size // CHUNK, u)
                directions.append(direction)
                c = eps * torch.tensor([s[i].r for s in drawn], device=theta.device)
                for sign in (1, -1)[: estimator.sides]:
                    losses.append(self._loss(theta + (sign * c[:, None] * direction)[of], runs, batch))
            means = torch.stack(losses).double()  # [F, R]
            d = estimator.differences(means, eps)
            d = torch.where(d.isfinite(), d, 0)
            for i, direction in enumerate(directions):
                weight = torch.tensor([s[i].weight for s in drawn], device=theta.device)
                theta -= (lr * weight[of] * d[i])[:, None] * direction[of]
            if step + 1 in marks:
                found.append(((step + 1) * estimator.forwards, *self._evaluate(theta, runs)))
        return _curves(found)

    def first_order(self, runs: Sequence[Run], steps: int, evaluations: int = 8) -> Curves:
        """AdamW, the ceiling: a step costs a forward and a backward pass, counted as three forwards."""
        theta = self.start.repeat(len(runs), 1).requires_grad_()
        mean, square = torch.zeros_like(theta), torch.zeros_like(theta)
        lr = torch.tensor([run.lr for run in runs], device=theta.device)[:, None]
        order = self._order(runs, steps)
        marks = {steps * (k + 1) // evaluations for k in range(evaluations)}
        found = [(0, *self._evaluate(theta.detach(), runs))]
        for step in range(steps):
            (gradient,) = torch.autograd.grad(self._loss(theta, runs, order[step]).sum(), theta)
            with torch.no_grad():
                mean.lerp_(gradient, 0.1)
                square.lerp_(gradient.square(), 0.001)
                scale = (square / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
                theta -= lr * (mean / (1 - 0.9 ** (step + 1)) / scale + 0.01 * theta)
            if step + 1 in marks:
                found.append((3 * (step + 1), *self._evaluate(theta.detach(), runs)))
        return _curves(found)

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
    def _evaluate(self, theta: Tensor, runs: Sequence[Run], most: int = 256) -> tuple[Tensor, Tensor, Tensor]:
        """(objective, test loss, test accuracy) [R] each."""
        result = torch.zeros(3, len(runs))
        for index, task in enumerate(self.tasks):
            members = [i for i, run in enumerate(runs) if run.task == index]
            if not members:
                continue
            for split, begin, end in ((0, 0, min(task.train, most)), (1, task.train, len(task.ids))):
                losses, right = [], []
                examples = (torch.arange(begin, end) + self.first[index]).to(theta.device)
                for rows in torch.split(examples, 64):
                    some = [runs[i] for i in members]
                    many = rows.expand(len(some), -1)
                    logits = self._answers(theta[members], some, many)
                    label = self.label[many]
                    losses.append(
                        F.cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="none").view(
                            many.shape
                        )
                    )
                    right.append(logits.argmax(-1) == label)
                loss = torch.cat(losses, 1).mean(1).cpu()
                result[split, members] = torch.where(loss.isfinite(), loss, torch.inf)
                if split:
                    result[2, members] = torch.cat(right, 1).float().mean(1).cpu()
        return result[0], result[1], result[2]


def _curves(found: Sequence[tuple[int, Tensor, Tensor, Tensor]]) -> Curves:
    forwards, *rest = zip(*found, strict=True)
    return Curves(list(forwards), *(torch.stack(values) for values in rest))
