"""The optimizer: what is evaluated where, and what is then done to the weights.

Two sweeps a step. In place (``restore="arithmetic"``) the weights go + eps r u, - 2 eps r u, and then, in one operation,
back and along the gradient; with ``defer`` that operation is merged with the next step's first. From a second copy
(``restore="exact"``) both perturbations are written beside the copy, and an update changes the copy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from planish.config import validate
from planish.errors import DataError, PlanishError, RunError
from planish_kerzoo.config import Options
from planish_kerzoo.estimator import Sample
from planish_kerzoo.layout import lay_out
from planish_kerzoo.log import Recorder, RunLog, Step, fingerprint
from planish_kerzoo.sweep import Operation, Sweeper, Work, parts

Closure = Callable[[], Tensor | float]
PLUS, MINUS, BACK, UPDATE = range(4)


class KerZOO(torch.optim.Optimizer):
    """Zeroth-order optimizer: ``step(closure)`` evaluates the closure 2 n times at perturbed weights and updates them.

    ``closure`` returns the loss of one and the same batch each time it is called within a step, as a scalar or as the
    losses [k] of its equal parts; gradients are off. Under torch.distributed every process gives its own part of the
    batch, and the mean over all of them is what counts. Nothing in a step waits for the device, except that the first
    one evaluates twice to see whether the loss is deterministic. Where the closure raises, the weights go back to where the step
    found them, and the next call does the step again.

    Args:
        params: a module, whose dropout is then off during a step; ``module.named_parameters()``; or parameter groups,
            each with its own ``lr`` and ``eps`` if wanted. Frozen parameters are left alone, tied ones move once.
        seed: of all directions and radii.
        defer: leave the weights perturbed between steps, so that a step is two sweeps and not three; call `finish`
            before using them otherwise. The bits are the same.
        log: where (seed, r, d) of every step is written: a log or its path. With sharded weights any process may have one.
        log_every: steps between two readings of d from a GPU.
        group: process group of the data-parallel processes; by default all.
        options: see `planish_kerzoo.config.Options`.

    Raises PlanishError in one line for options that do not fit, for parameters that cannot be trained, and where
    none is left; DataError for an empty batch; RunError for too many losses in a row that are not finite.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        *,
        seed: int = 0,
        defer: bool = False,
        log: RunLog | str | Path | None = None,
        log_every: int = 16,
        group: dist.ProcessGroup | None = None,
        **options: Any,
    ) -> None:
        self.options = validate(Options, options, "KerZOO")
        if not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise PlanishError(f"KerZOO: seed = {seed!r} is not an integer from 0 to 2^64 - 1")
        self.seed = seed
        self.defer = defer
        self.estimator = self.options.estimator()
        self.module = params if isinstance(params, nn.Module) else None
        self.group = group
        self.steps = 0
        self.forwards = 0
        self._pending: list[Operation] = []
        self._checked = False
        self._sweeper: Sweeper | None = None
        self._previous: list[Tensor] = []
        given = list(params.named_parameters()) if isinstance(params, nn.Module) else list(params)
        if not given:
            raise PlanishError("no parameter to train: none was given")
        super().__init__(given, {"lr": self.options.lr, "eps": self.options.eps})
        self._build()
        log = self.log = RunLog(log) if isinstance(log, str | Path) else log
        if log is not None or any(work.segment.sharded for work in self.works):
            header = self.header(based=True)  # gathers shards: processes without a log have to take part
            if log is not None:
                log.bind(header)
        on_gpu = self.works[0].segment.local().is_cuda
        self._recorder = Recorder(log, log_every if on_gpu else 1, self.options.max_skipped)

    # ---- the parameters -----------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch's optimizers do; before the first step."""
        if self.__dict__.get("_sweeper") is not None and (self.steps or self.log is not None):
            raise PlanishError("KerZOO: groups can be added only before the first step and without a log")
        for key in ("lr", "eps"):
            value = param_group.get(key, 1.0)
            if not (isinstance(value, int | float | Tensor) and 0 < float(value) < float("inf")):
                raise PlanishError(f"KerZOO: {key} = {value!r} of a parameter group is not a positive number")
        super().add_param_group(param_group)
        if self.__dict__.get("_sweeper") is not None:
            self._build()

    def _build(self) -> None:
        named = [
            (name, parameter, number)
            for number, group in enumerate(self.param_groups)
            for name, parameter in zip(
                group.get("param_names") or [f"{number:04d}.{i:06d}" for i in range(len(group["params"]))],
                group["params"],
                strict=True,
            )
        ]
        segments = lay_out(named)
        if self.slotted and any(segment.sharded for segment in segments):
            raise PlanishError("KerZOO: per_tensor_r and clip need whole parameters, and these are sharded")
        policy, exact = self.options.dtype_policy, self.options.restore == "exact"
        works = []
        for segment in segments:
            weights = segment.local()
            kept = torch.promote_types(weights.dtype, torch.float32) if policy == "masters" else weights.dtype
            works.append(
                Work(
                    segment,
                    segment.index if self.slotted else segment.group,
                    weights.to(kept, copy=True) if exact else None,
                    stochastic=policy in ("auto", "stochastic"),
                )
            )
        self.works = works
        self._groups = (
            [work.segment.group for work in works] if self.slotted else list(range(len(self.param_groups)))
        )
        self._sweeper = Sweeper(works, self.options.u, self.options.exact_noise)

    @property
    def slotted(self) -> bool:
        """Whether coefficients differ by tensor."""
        return self.options.per_tensor_r or self.options.clip is not None

    @property
    def sweeps(self) -> int:
        """Sweeps over the weights so far."""
        assert self._sweeper is not None
        return self._sweeper.count

    @property
    def skipped(self) -> int:
        """Steps skipped so far because a loss was not finite, as far as d has been read from the device."""
        return self._recorder.skipped

    def header(self, based: bool = False) -> dict[str, Any]:
        """What a log says of its run; with ``based``, the fingerprint of the weights it starts from too."""
        segments = [work.segment for work in self.works]
        return {
            "n": self.estimator.n,
            "groups": len(self.param_groups),
            "seed": self.seed,
            "eps": [group["eps"] for group in self.param_groups],
            "options": self.options.model_dump(mode="json", exclude={"lr", "eps", "max_skipped"}),
            "parameters": sum(segment.parameter.numel() for segment in segments),
            "base": fingerprint(segments) if based else None,
        }

    # ---- a step -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """One step. Returns the mean of its losses, on the device."""
        if closure is None:
            raise PlanishError(
                "KerZOO.step needs a closure that returns the loss: it is evaluated several times"
            )
        if self.log is not None:
            self._fits_log(self.log)
        samples = self.estimator.samples(self.seed, self.steps)
        losses: list[Tensor] = []
        with _dropout_off(self.module):
            if self.estimator.unperturbed:
                self._settle()
                losses.append(self._loss(closure, losses))
            for position, sample in enumerate(samples):
                for side, operation in enumerate(self._probes(sample)):
                    self._pending.append(operation)
                    self._settle()
                    try:
                        losses.append(self._loss(closure, losses))
                    except BaseException:
                        self._withdraw(sample, side)
                        raise
                if position < len(samples) - 1:
                    self._leave(sample)
        means = self._mean(torch.stack(losses))
        d = self.estimator.differences(means, self.param_groups[0]["eps"])
        lrs = [float(group["lr"]) for group in self.param_groups]
        self._update(samples, d, lrs)
        number, self.steps = self.steps, self.steps + 1
        if not self.defer:
            self._settle()
        try:
            self._recorder.add(number, samples, lrs, d)
        except RunError:
            self._settle()  # whoever catches it finds the weights of the last good step
            raise
        return means.mean()

    @torch.no_grad()
    def repeat(self, step: Step) -> None:
        """Do to the weights what a recorded step did, without evaluating a loss."""
        if step.number != self.steps:
            raise PlanishError(f"KerZOO: step {step.number} of the log does not follow step {self.steps - 1}")
        self._apply(step, 1.0)
        self.steps += 1

    @torch.no_grad()
    def take_back(self, step: Step, share: float) -> None:
        """Undo that share of what a recorded step changed, up to rounding.

        Raises PlanishError where a step's change depends on more than its record: with clip, averaging or an r per tensor.
        """
        if self.slotted or self.options.averaging is not None:
            raise PlanishError("KerZOO: steps with clip, averaging or per_tensor_r cannot be taken back")
        self._apply(step, -share)

    def _apply(self, step: Step, share: float) -> None:
        for position, sample in enumerate(step.samples):
            if self.options.restore == "arithmetic":
                self._pending += self._probes(sample)
            if position < len(step.samples) - 1:
                self._leave(sample)
        device = self.works[0].segment.local().device
        d = torch.tensor(step.d, dtype=torch.float32, device=device)
        self._update(step.samples, d, [share * lr for lr in step.lrs])
        self._settle()

    @torch.no_grad()
    def finish(self) -> None:
        """Bring the weights to where the last step leaves them, and write the log up to it."""
        self._settle()
        self._recorder.drain()

    def _probes(self, sample: Sample) -> list[Operation]:
        """What is added to the weights before each loss of one direction."""
        shifts = [1.0]
        if self.estimator.sides == 2:
            shifts.append(-2.0 if self.options.restore == "arithmetic" else -1.0)
        return [
            self._operation(sample, turn, shift) for turn, shift in zip((PLUS, MINUS), shifts, strict=False)
        ]

    @property
    def _back(self) -> float:
        """What brings the weights back after the last probe of a direction, in units of eps r."""
        if self.options.restore == "exact":
            return 0.0
        return 1.0 if self.estimator.sides == 2 else -1.0

    def _leave(self, sample: Sample) -> None:
        if self._back:
            self._pending.append(self._operation(sample, BACK, self._back))

    def _withdraw(self, sample: Sample, side: int) -> None:
        """Take a direction's probe back after the closure raised: the step has not happened, up to rounding unless restore is exact."""
        if self.options.restore == "exact":
            back = Operation(
                sample.seed, BACK, (0.0,) * len(self._groups), keeps=True
            )  # written from the copy
        else:
            back = self._operation(sample, BACK, -1.0 if side == 0 else 1.0)
        self._pending = [back]
        self._settle()

    def _update(self, samples: Sequence[Sample], d: Tensor, lrs: Sequence[float]) -> None:
        """theta -= lr sum_i a_i d_i u_i; in place, the last direction's way back is part of its own term."""
        scale = self._clip_scale(samples, d)
        for position in (len(samples) - 1, *range(len(samples) - 1)):
            sample = samples[position]
            last = position == len(samples) - 1
            difference = (
                d[position : position + 1] * scale if scale is not None else d[position : position + 1]
            )
            turn, shift = (BACK, self._back) if last and self._back else (UPDATE, 0.0)
            self._pending.append(self._operation(sample, turn, shift, difference, lrs))
        if self.options.averaging is not None:
            self._settle()
            self._average(self.options.averaging)

    def _operation(
        self, sample: Sample, turn: int, shift: float, d: Tensor | None = None, lrs: Sequence[float] = ()
    ) -> Operation:
        """shift eps r u, and where d is given - lr a d u, with the factors of every slot."""
        slots = self._slots(sample)
        eps = [float(self.param_groups[group]["eps"]) for group in self._groups]
        h = tuple(shift * e * one.r for e, one in zip(eps, slots, strict=True))
        if d is None:
            return Operation(sample.seed, turn, h)
        first = float(self.param_groups[0]["eps"])  # d is the difference over the first group's eps
        s = tuple(
            -lrs[group] * one.weight * first / e
            for group, e, one in zip(self._groups, eps, slots, strict=True)
        )
        return Operation(sample.seed, turn, h, s, d, keeps=True)

    def _slots(self, sample: Sample) -> list[Sample]:
        if self.options.per_tensor_r:
            return self.estimator.per_tensor(sample, self.steps, len(self._groups))
        return [sample] * len(self._groups)

    def _settle(self) -> None:
        """Apply what is pending, two operations a sweep where that gives the same bits."""
        assert self._sweeper is not None
        in_place = self.options.restore == "arithmetic"
        while self._pending:
            first, second = self._pending.pop(0), None
            if self._pending and (in_place or (first.keeps and not self._pending[0].keeps)):
                second = self._pending.pop(0)
            self._sweeper(first, second)

    # ---- losses -------------------------------------------------------------------------------------------------

    def _fits_log(self, log: RunLog) -> None:
        """A log goes on where it ends, and has one eps a group for all its steps."""
        if not self._checked:
            log.expect(self.steps)
        eps = [group["eps"] for group in self.param_groups]
        if eps != log.header["eps"]:
            raise PlanishError(
                f"KerZOO: eps = {eps} is not that of the log, {log.header['eps']}: only lr may change during a run"
            )

    def _loss(self, closure: Closure, before: Sequence[Tensor]) -> Tensor:
        """The losses [k] of the closure, float32, as many as ``before``."""
        loss = self._flat(closure())
        if before and len(before[0]) != len(loss):
            raise DataError(
                f"KerZOO: the closure returned {len(before[0])} and then {len(loss)} losses: within a step it is called with one "
                "and the same batch"
            )
        self.forwards += 1
        _reshard(self.module)
        if not self._checked:
            self._checked = True
            again = self._flat(closure())
            _reshard(self.module)
            if loss.shape != again.shape or not torch.allclose(loss, again, rtol=0, atol=0, equal_nan=True):
                warnings.warn(
                    "KerZOO: two evaluations at the same weights gave different losses. Is dropout on, or does the "
                    "closure draw a new batch each time it is called? Differences of losses are then mostly noise",
                    stacklevel=3,
                )
        return loss

    def _flat(self, loss: Tensor | float) -> Tensor:
        if not isinstance(loss, Tensor | float | int):
            raise DataError(
                f"KerZOO: the closure returned {type(loss).__name__}, not a loss (a tensor or a number)"
            )
        device = self.works[0].segment.local().device
        flat = torch.as_tensor(loss).detach().to(device).float().reshape(-1)
        if flat.numel() == 0:
            raise DataError("KerZOO: the closure returned no loss: the batch is empty")
        return flat

    def _mean(self, losses: Tensor) -> Tensor:
        """The mean of each loss of [F, k], in float64, over its k parts and over all processes, in their order."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size(self.group) > 1:
            parts = [torch.empty_like(losses) for _ in range(dist.get_world_size(self.group))]
            dist.all_gather(parts, losses.contiguous(), group=self.group)
            losses = torch.cat(parts, 1)
        return losses.double().mean(1)

    # ---- what only the authors' code does -----------------------------------------------------------------------

    def _clip_scale(self, samples: Sequence[Sample], d: Tensor) -> Tensor | None:
        """min(1, clip / norm of the tensor's gradient estimate) for every tensor."""
        if self.options.clip is None:
            return None
        assert self._sweeper is not None
        slots = [self._slots(sample) for sample in samples]
        norms = []
        for work in self.works:
            square = torch.zeros((), dtype=torch.float64, device=d.device)
            device = work.segment.local().device
            for part in parts(work.segment):
                estimate = torch.zeros(part.inside.stop - part.inside.start, device=device)
                for i, sample in enumerate(samples):
                    u = self._sweeper.directions(sample.seed, part.block, device)[part.outside]
                    estimate += slots[i][work.slot].weight * d[i] * u
                square += estimate.double().square().sum()
            norms.append(square.sqrt())
        return (self.options.clip / torch.stack(norms).clamp_min(self.options.clip)).float()

    def _average(self, beta: float) -> None:
        """theta <- c / beta + (1 - 1 / beta) theta, then c <- theta."""
        current = [work.segment.local() if work.copy is None else work.copy for work in self.works]
        if self._previous:
            for theta, before in zip(current, self._previous, strict=True):
                theta.mul_(1 - 1 / beta).add_(before, alpha=1 / beta)
        self._previous = [theta.clone() for theta in current]
        for work in self.works:
            if work.copy is not None:
                work.segment.local().copy_(work.copy)

    # ---- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Groups, position in the run and second copies; finishes the pending step first."""
        self.finish()
        copies = {work.segment.name: work.copy for work in self.works if work.copy is not None}
        own = {"steps": self.steps, "seed": self.seed, "copies": copies, "previous": list(self._previous)}
        return {**super().state_dict(), "kerzoo": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; the module's weights are loaded by their own state dict."""
        state = dict(state_dict)
        own = state.pop("kerzoo", None)
        exact = {work.segment.name for work in self.works if work.copy is not None}
        if own is None or exact != set(own["copies"]):
            found = (
                "not of a KerZOO optimizer"
                if own is None
                else "of other parameters or another option restore"
            )
            raise PlanishError(f"KerZOO: this state is {found}")
        super().load_state_dict(state)
        self.steps, self.seed = int(own["steps"]), int(own["seed"])
        self._previous = list(own["previous"])
        self._pending = []
        for work in self.works:
            if work.copy is not None:
                work.copy.copy_(own["copies"][work.segment.name])


@contextmanager
def _dropout_off(module: nn.Module | None) -> Iterator[None]:
    """Evaluation mode for as long as a step lasts."""
    training = [part for part in module.modules() if part.training] if module is not None else []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _reshard(module: nn.Module | None) -> None:
    """Free what FSDP2 keeps gathered after a forward pass of its root, which would hide the next change of the shards."""
    if module is None or not dist.is_available() or not dist.is_initialized():
        return
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
