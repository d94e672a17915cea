"""``planish bench reram``: one layer of 768 x 768, 128 vectors, one thread, one common configuration.

8-bit inputs and column sums, ranges calibrated on other data, offset mapping, four 2-bit slices, tiles of 128 x 128. Peers:
torch's linear layer, and the same simulation as a plain loop over tiles and slices, re-stated here. Times are processor
seconds of this process, programs in turns: on a shared machine wall time measures the neighbours. The bars of 12 and 20
milliseconds were set, as least times, on a machine whose linear layer took 1 ms. They are compared with least times as they
stand, and carried over as 12 and 20 times torch's linear layer.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from planish import measure
from planish.bench import Row
from planish.timing import Timing, ratio
from planish_reram.chip import Physics, compose, program
from planish_reram.converters import Adc, convert_inputs
from planish_reram.layers import CrossbarLinear, Setup
from planish_reram.network import calibrate
from planish_reram.quantise import quantise
from planish_reram.specs import Converters, preset

COMMAND = "planish bench reram"
COMMON = Converters(dac_bits=8, adc_bits=8)
SLICED_MS, COMPOSE_MS, ERROR = 12.0, 20.0, 0.04


def rows(*, quick: bool = False) -> Iterator[Row]:
    """Speed and error; ``quick`` takes fewer rounds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield from _rows(rounds=7 if quick else 40)
    finally:
        torch.set_num_threads(threads)


def _rows(rounds: int) -> Iterator[Row]:
    draws = torch.Generator().manual_seed(0)
    dense = nn.Linear(768, 768, bias=False)
    dense.weight.copy_(torch.randn(768, 768, generator=draws) / 768**0.5)
    other, x = torch.randn(2, 128, 768, generator=draws)
    layers = {
        name: _layer(dense, converters, other)
        for name, converters in (
            ("ideal", Converters(dac_bits=None)),
            ("composed", Converters()),
            ("composed, calibrated", Converters(dac_range="calibrated")),
            ("sliced", COMMON),
        )
    }
    adc = layers["sliced"].adc
    assert adc is not None
    physics = Physics(rates=preset("march_test"))

    def written() -> Tensor:
        quantised = quantise(dense.weight)
        return compose(program(quantised, physics, [0], "a"), quantised, physics)

    timings = _processor_seconds(
        {
            "linear": lambda: dense(x),
            "ideal": lambda: layers["ideal"](x),
            "composed": lambda: layers["composed"](x),
            "composed, calibrated": lambda: layers["composed, calibrated"](x),
            "sliced": lambda: layers["sliced"](x),
            "loop": lambda: loop_over_tiles(x, layers["sliced"], adc),
            "written": written,
        },
        rounds,
    )
    wanted = dense(x)
    error = float((layers["sliced"](x) - wanted).norm() / wanted.norm())
    agreed = float((layers["sliced"](x) - loop_over_tiles(x, layers["sliced"], adc)).abs().max())
    linear = timings["linear"]
    yield _timed("composed weight, ideal converters", timings["ideal"], "torch linear", linear, 1.1)
    yield _timed(
        "composed weight, 8-bit inputs, calibrated range", timings["composed, calibrated"], "torch linear", linear, 1.1
    )  # fmt: skip
    yield _timed(
        "composed weight, 8-bit inputs, a range a vector", timings["composed"], "torch linear", linear, 1.1
    )
    yield _timed(
        "sliced, 8-bit inputs and ADC", timings["sliced"], "plain loop over tiles", timings["loop"], 1.0
    )
    yield _timed("sliced, 8-bit inputs and ADC", timings["sliced"], "torch linear", linear, SLICED_MS)
    yield _timed(
        "quantise, slice, draw faults, compose", timings["written"], "torch linear", linear, COMPOSE_MS
    )
    yield _bar("sliced, 8-bit inputs and ADC", timings["sliced"], SLICED_MS)
    yield _bar("quantise, slice, draw faults, compose", timings["written"], COMPOSE_MS)
    device = measure.device_name()
    yield Row("relative error of the sliced path", error, "", "the bar", ERROR, ("<=", 1.0), device, COMMAND)
    yield Row(
        "largest difference from the plain loop", agreed, "", "largest output", float(wanted.abs().max()), ("<=", 1e-5),
        device, COMMAND,
    )  # fmt: skip


def _layer(dense: nn.Linear, converters: Converters, x: Tensor) -> CrossbarLinear:
    """The layer on crossbars, its ranges calibrated on ``x``."""
    layer = CrossbarLinear(dense, Setup(converters=converters))
    calibrate(layer, [{"x": x}], lambda batch: layer(batch["x"]))
    return layer


def _timed(metric: str, own: Timing, peer: str, other: Timing, bar: float | None) -> Row:
    """Milliseconds beside a peer's; both are scaled so that their ratio is the median over the rounds."""
    middle = ratio(own, other).median
    seconds = own.seconds
    return Row(
        metric, 1e3 * seconds.median, "ms", peer, 1e3 * seconds.median / middle, ("<=", bar) if bar else None,
        measure.device_name(), COMMAND, 1e3 * (seconds.high - seconds.low) / 2,
    )  # fmt: skip


def _bar(metric: str, own: Timing, milliseconds: float) -> Row:
    """The least time beside a bar."""
    spread = 1e3 * (own.seconds.median - min(own.samples))
    return Row(
        metric + ", least time", 1e3 * min(own.samples), "ms", "the bar", milliseconds, ("<=", 1.0),
        measure.device_name(), COMMAND, spread,
    )  # fmt: skip


def _processor_seconds(programs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Processor time of each program, once a round, in an order drawn anew each round.

    Each is called once more, untimed, just before, so that none finds its predecessor's data in the caches.
    """
    samples: dict[str, list[float]] = {name: [] for name in programs}
    order, shuffle = list(programs), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            programs[name]()
            begin = time.process_time()
            programs[name]()
            samples[name].append(time.process_time() - begin)
    return {name: Timing(name, "cpu", tuple(taken)) for name, taken in samples.items()}


def loop_over_tiles(x: Tensor, layer: CrossbarLinear, adc: Adc) -> Tensor:
    """The sliced product as one would write it down: every tile and every slice a small product of its own."""
    cells, layout = layer.cells.levels[0, 0, 0], layer.cells.layout
    inputs = convert_inputs(x, layer.setup.converters)
    assert inputs.scale is not None
    y = torch.zeros(len(x), cells.shape[1])
    for first in range(0, cells.shape[2], 128):
        tile = slice(first, first + 128)
        for k, significance in enumerate(layout.significance):
            sums = inputs.values[:, tile] @ cells[k, :, tile].float().t()
            step, low, high = (float(t[0, k]) for t in (adc.step, adc.first, adc.last))
            codes = torch.clamp(torch.round(sums * (1 / step)), low, high)
            y = y + significance * step * codes
    y = y - layout.offset * inputs.values.sum(dim=-1, keepdim=True)
    return y * inputs.scale * layer.quantised.scale
