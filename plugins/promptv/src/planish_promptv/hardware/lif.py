"""A leaky integrate-and-fire neuron: in floating point, in fixed point with torch, and as a circuit that equals the latter.

Dynamics (LIF with hard or soft reset): ``v <- decay v + gain x``, spike where ``v`` reaches the threshold, then ``v <- 0`` or
``v <- v - threshold``. snnTorch applies the reset in the next step (``late``) and needs ``v`` above the threshold
(``strict``). Widths and rounding are our choice: arithmetic shift, that is rounding down, then saturation.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from planish.errors import PlanishError
from planish_promptv.hardware.bench import vector_bench
from planish_promptv.hardware.rtl import template
from planish_promptv.types import Port, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

TOP = "lif_neuron"


@dataclass(frozen=True, slots=True)
class Lif:
    """Constants of a neuron.

    Attributes:
        decay: factor of the potential a step. gain: factor of the input current. threshold: in units of the potential.
        reset: potential after a spike: 0, or lower by the threshold.
        late: the reset happens in the next step. strict: the potential must exceed the threshold, not only reach it.
        width: bits of potential and current. fraction: how many of them are behind the binary point.
    """

    decay: float
    gain: float
    threshold: float
    reset: Literal["zero", "subtract"] = "zero"
    late: bool = False
    strict: bool = False
    width: int = 16
    fraction: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise PlanishError(f"LIF neuron: decay = {self.decay} is not between 0 and 1")
        if not 1 <= self.fraction < self.width <= 24:
            raise PlanishError(
                f"LIF neuron: width = {self.width}, fraction = {self.fraction}; need 1 <= fraction < width <= 24"
            )
        if not 0 < self.fixed(self.threshold) <= self.highest:
            raise PlanishError(
                f"LIF neuron: threshold = {self.threshold} does not fit {self.width} bits with {self.fraction} fractional ones"
            )
        if not 0 < self.fixed(self.gain) <= self.highest:
            raise PlanishError(f"LIF neuron: gain = {self.gain} does not fit")

    @property
    def highest(self) -> int:
        """Largest value of the fixed-point format, as an integer."""
        return (1 << (self.width - 1)) - 1

    def fixed(self, value: float) -> int:
        """The nearest fixed-point number, as an integer."""
        return round(value * (1 << self.fraction))


def from_module(module: nn.Module) -> Lif | None:
    """The neuron that ``module`` computes, told by its attributes: snnTorch's ``Leaky`` (``beta``), or ``tau``/``decay``
    with a threshold as SpikingJelly and planish name them. None when it is no such neuron."""
    threshold = _number(module, "threshold", "v_threshold")
    if threshold is None:
        return None
    if (beta := _number(module, "beta")) is not None:
        mechanism = str(getattr(module, "reset_mechanism", "subtract"))
        if mechanism not in ("subtract", "zero"):
            return None
        late = bool(getattr(module, "reset_delay", True))
        return Lif(beta, 1.0, threshold, mechanism, late, strict=True)  # type: ignore[arg-type]
    if (tau := _number(module, "tau")) is not None:
        gain = 1 / tau if getattr(module, "decay_input", True) else 1.0
        decay = 1 - 1 / tau
    elif (decay_or_none := _number(module, "decay")) is not None:
        decay = decay_or_none
        gain = _number(module, "gain") or 1 - decay
    else:
        return None
    soft = getattr(module, "v_reset", 0.0) is None or getattr(module, "reset", "") in ("soft", "subtract")
    return Lif(decay, gain, threshold, "subtract" if soft else "zero")


def fixed_point(
    lif: Lif, current: Tensor, enable: Tensor | None = None, rst: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The reference for the circuit.

    Args:
        current: integers [T, ...] in the neuron's fixed-point format.
        enable, rst: booleans [T]; a step that is not enabled changes nothing, a reset clears potential and spike.

    Returns:
        Spikes (0 or 1) and potentials after each step, integers of the same shape.
    """
    import torch

    decay, gain, threshold = lif.fixed(lif.decay), lif.fixed(lif.gain), lif.fixed(lif.threshold)
    potential = torch.zeros_like(current[0], dtype=torch.int64)
    spike = torch.zeros_like(potential)
    spikes, potentials = [], []
    for t, x in enumerate(current.to(torch.int64)):
        if rst is not None and rst[t]:
            potential, spike = torch.zeros_like(potential), torch.zeros_like(spike)
        elif enable is None or enable[t]:
            updated = (potential * decay + x * gain) >> lif.fraction
            if lif.late:
                updated = updated - spike * (threshold if lif.reset == "subtract" else updated)
            held = updated.clamp(-lif.highest - 1, lif.highest)
            spike = (held > threshold if lif.strict else held >= threshold).to(torch.int64)
            potential = held
            if not lif.late:
                potential = held - spike * (threshold if lif.reset == "subtract" else held)
        spikes.append(spike)
        potentials.append(potential)
    return torch.stack(spikes), torch.stack(potentials)


def floating_point(lif: Lif, current: Tensor) -> Tensor:
    """Spikes [T, ...] of the same neuron in the arithmetic of ``current``'s type: what the model itself computes."""
    import torch

    potential, spike, spikes = torch.zeros_like(current[0]), torch.zeros_like(current[0]), []
    for x in current:
        potential = lif.decay * potential + lif.gain * x
        if lif.late:
            potential = potential - spike * (lif.threshold if lif.reset == "subtract" else potential)
        spike = (potential > lif.threshold if lif.strict else potential >= lif.threshold).to(current.dtype)
        if not lif.late:
            potential = potential - spike * (lif.threshold if lif.reset == "subtract" else potential)
        spikes.append(spike)
    return torch.stack(spikes)


def agreement(lif: Lif, steps: int = 4096, seed: int = 0) -> float:
    """Share of steps in which the fixed-point neuron spikes exactly when the float64 one does, for random currents."""
    import torch

    current = torch.randn(steps, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    current = current * lif.threshold / lif.gain
    limit = lif.highest / (1 << lif.fraction)
    current = current.clamp(-limit, limit)
    spikes, _ = fixed_point(lif, (current * (1 << lif.fraction)).round())
    return float((spikes == floating_point(lif, current)).double().mean())


def rtl(lif: Lif) -> str:
    """The hand-written circuit with the neuron's constants."""
    if not lif.late:
        updated, after = (
            "leaked",
            "fires ? 0 : held" if lif.reset == "zero" else "fires ? held - THRESHOLD : held",
        )
    else:
        updated = "spike ? 0 : leaked" if lif.reset == "zero" else "spike ? leaked - THRESHOLD : leaked"
        after = "held"
    return template("lif_neuron.v").substitute(
        MSB=lif.width - 1,
        WIDE=2 * lif.width + 2,
        FRACTION=lif.fraction,
        DECAY=lif.fixed(lif.decay),
        GAIN=lif.fixed(lif.gain),
        THRESHOLD=lif.fixed(lif.threshold),
        HIGHEST=lif.highest,
        UPDATED=updated,
        COMPARE=">" if lif.strict else ">=",
        AFTER=after,
    )


def task(lif: Lif, vectors: int = 256, seed: int = 0, name: str = "lif") -> Task:
    """The neuron as a design task: description, bench from the torch reference's vectors, and the circuit that ships."""
    import torch

    rows = _stimulus(lif, vectors, random.Random(seed))
    reset, enable, current = (torch.tensor(column) for column in zip(*rows, strict=True))
    spikes, potentials = fixed_point(lif, current[:, None], enable.bool(), reset.bool())
    expected = zip(spikes[:, 0].tolist(), potentials[:, 0].tolist(), strict=True)
    word: dict[str, Any] = {"width": lif.width, "signed": True}
    inputs = (
        Port(name="rst", direction="input"),
        Port(name="en", direction="input"),
        Port(name="current", direction="input", **word),
    )
    outputs = (
        Port(name="spike", direction="output"),
        Port(name="potential", direction="output", **word),
    )
    source = rtl(lif)
    return Task(
        id=name,
        description=describe(lif),
        top_name=TOP,
        ports=(Port(name="clk", direction="input"), *inputs, *outputs),
        language="verilog2001",
        provided_testbench=vector_bench(
            TOP, inputs, outputs, [(*row, *out) for row, out in zip(rows, expected, strict=True)]
        ),
        reference=source,
        benchmark="hardware",
        notes=(
            f"fixed point spikes exactly as float64 does in {agreement(lif):.2%} of 65536 steps with random currents",
        ),
    )


def _stimulus(lif: Lif, count: int, rng: random.Random) -> list[tuple[int, int, int]]:
    """(rst, en, current) a cycle: ordinary currents, phases at either end of the range, pauses, and resets."""
    lowest, scale = -lif.highest - 1, lif.fixed(lif.threshold / lif.gain)
    phases = (
        lambda: round(rng.gauss(0.5, 1.0) * scale),
        lambda: round(rng.gauss(0.1, 0.2) * scale),
        lambda: rng.randint(lowest, lif.highest),
        lambda: lif.highest,
        lambda: lowest,
    )
    rows = [(1, 0, 0)]
    while len(rows) < count:
        draw = rng.choices(phases, (4, 4, 2, 1, 1))[0]
        for _ in range(rng.randint(4, 12)):
            current = max(lowest, min(lif.highest, draw()))
            rows.append((int(rng.random() < 0.02), int(rng.random() < 0.9), current))
    return rows[:count]


def describe(lif: Lif) -> str:
    """What a designer must be told: interface, number format, and the exact rule of a step."""
    f = lif.fraction
    reset = "becomes 0" if lif.reset == "zero" else f"is lowered by {lif.fixed(lif.threshold)}"
    when = (
        "After a spike the stored potential"
        if not lif.late
        else "In the enabled step after a spike, u, before it saturates,"
    )
    compare = "is greater than" if lif.strict else "is greater than or equal to"
    return f"""Write a module {TOP}: one leaky integrate-and-fire neuron in fixed point.

Ports: clk (rising edge), rst (synchronous, active high), en, current (signed, {lif.width} bits) are inputs; spike (1 bit) and
potential (signed, {lif.width} bits) are registered outputs. Numbers have {f} fractional bits.

When rst is high, spike and potential become 0. Otherwise, when en is low, both keep their values. When en is high:
u = (potential * {lif.fixed(lif.decay)} + current * {lif.fixed(lif.gain)}) shifted right arithmetically by {f}, computed without overflow;
v = u saturated to the range {-lif.highest - 1} .. {lif.highest};
spike becomes 1 if v {compare} {lif.fixed(lif.threshold)}, else 0; potential becomes v.
{when} {reset}.
"""


def _number(module: Any, *names: str) -> float | None:
    for name in names:
        value = getattr(module, name, None)
        if isinstance(value, bool) or value is None or callable(value):
            continue
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            continue  # one value a channel, or no number at all
    return None
