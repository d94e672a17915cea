"""A whole network on crossbars: layers swapped in place, chips written, converter ranges measured."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from planish.errors import ConfigError, PlanishError
from planish_reram.chip import NO_PROTECTION
from planish_reram.converters import Adc
from planish_reram.layers import Crossbar, Setup, crossbar
from planish_reram.mapping import mapped_layers
from planish_reram.protection import LayerProtection

SAMPLES = 1 << 15
"""Column sums kept a slice and batch for a percentile."""


def to_crossbars(
    module: nn.Module,
    setup: Setup | None = None,
    *,
    protection: Mapping[str, LayerProtection] | None = None,
    skip: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
) -> list[str]:
    """Swap every mapped layer of ``module`` for a `Crossbar`, in place; parameters keep their names.

    Returns:
        Paths of the swapped layers, in module order.

    Raises:
        ConfigError: no layer can be mapped, the module is itself one, or the protection names a layer that is not mapped.
    """
    layers = mapped_layers(module, skip)
    if not layers:
        raise ConfigError("the network has no linear layer or convolution to put onto crossbars")
    if "" in layers:
        raise ConfigError(
            f"the network is a single {type(module).__name__}, which cannot be swapped in place; "
            "wrap it in nn.Sequential"
        )
    protection = protection or {}
    if unknown := [name for name in protection if name not in layers]:
        raise ConfigError(f"protection names the layer {unknown[0]!r}, which is not on crossbars")
    made = {
        id(layer): crossbar(layer, setup, name, protection.get(name, NO_PROTECTION), seeds)
        for name, layer in layers.items()
    }
    # One module under two names is one set of crossbars, under both.
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if id(layer) in made:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, made[id(layer)])
    return list(layers)


def crossbars(module: nn.Module) -> dict[str, Crossbar]:
    """The crossbar layers of a network, by path."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, Crossbar)}


def program_chips(
    module: nn.Module, seeds: Sequence[int], maps: Mapping[str, Sequence[Tensor]] | None = None
) -> None:
    """Write the network onto one chip a seed; ``maps`` are known fault maps by layer.

    With several chips a batch is chips * N samples, one chip after the other: `on_chips` repeats inputs that way.
    """
    layers = crossbars(module)
    if unknown := [name for name in maps or {} if name not in layers]:
        raise ConfigError(f"the fault maps name the layer {unknown[0]!r}, which is not on crossbars")
    for name, layer in layers.items():
        layer.program(seeds, None if maps is None else maps.get(name))


def on_chips(batch: Mapping[str, Tensor], chips: int) -> dict[str, Tensor]:
    """A batch once for each chip, one chip after the other."""
    return {name: value.repeat(chips, *[1] * (value.dim() - 1)) for name, value in batch.items()}


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Without torch's fused encoder layer, which reads the weights of its linear layers itself and would pass by the cells."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def calibrate(module: nn.Module, batches: Iterable[Mapping[str, Tensor]], run: Callable[[Any], Any]) -> None:
    """Measure the converters' ranges on data, with the cells as they are and ideal ADCs.

    Args:
        batches: inputs; at least one.
        run: called with each batch; runs the network once.

    Raises:
        PlanishError: no batch, a layer that no batch reaches, or an input with NaN or infinity.
    """
    layers = crossbars(module)
    seen = {name: _Ranges(name, layer) for name, layer in layers.items() if layer.setup.converters.calibrates}
    hooks = [layers[name].register_forward_pre_hook(ranges.look) for name, ranges in seen.items()]
    for layer in layers.values():
        layer.ideal_adc = True
        layer.forget()
    try:
        # Inputs first where they are scaled by a measured limit: sums are in units of it.
        for stage in ("inputs", "sums"):
            if not any(ranges.wants(stage) for ranges in seen.values()):
                continue
            for ranges in seen.values():
                ranges.stage = stage
            for batch in batches:
                run(batch)
            for ranges in seen.values():
                ranges.settle()
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers.values():
            layer.ideal_adc = False
            layer.forget()
            layer.rewind()


class _Ranges:
    """What one layer sees during calibration."""

    def __init__(self, name: str, layer: Crossbar) -> None:
        self.name = name
        self.layer = layer
        self.stage = "inputs"
        self.largest = 0.0
        self.sums: dict[tuple[int, int], list[Tensor]] = {}
        self.reached = False

    def wants(self, stage: str) -> bool:
        """Whether a range of this layer is measured in that pass."""
        converters = self.layer.setup.converters
        if stage == "inputs":
            return converters.dac_bits is not None and converters.dac_range == "calibrated"
        return converters.adc_bits is not None and converters.adc_range == "calibrated"

    def look(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Keep what passes by: the largest input, or a sample of the column sums."""
        x = arguments[0]
        if x.numel() == 0:  # an expert without a token
            return
        self.reached = True
        if not math.isfinite(largest := float(x.abs().max())):
            raise PlanishError(f"layer {self.name!r}: its calibration inputs hold NaN or infinity")
        if self.stage == "inputs":
            self.largest = max(self.largest, largest)
        elif self.wants("sums"):
            self._sample(x)

    def settle(self) -> None:
        """Set the range that this pass was for."""
        if not self.reached:
            raise PlanishError(
                f"layer {self.name!r}: no calibration batch reaches it, so its ranges are unknown"
            )
        if not self.wants(self.stage):
            return
        if self.stage == "inputs":
            self.layer.input_limit = self.largest or 1.0
            self.layer.forget()
            return
        converters, layout = self.layer.setup.converters, self.layer.setup.physics.layout
        assert converters.adc_bits is not None
        tail = (1 - converters.adc_percentile / 100) / 2
        low, high = [], []
        for array in range(layout.arrays):
            for k in range(layout.slices):
                ordered = torch.cat(self.sums[array, k]).sort(dim=0).values
                last = len(ordered) - 1
                low.append(ordered[round(tail * last)])
                high.append(ordered[round((1 - tail) * last)])
        shape = (layout.arrays, layout.slices, -1)
        self.layer.adc = Adc.spanning(
            torch.stack(low).view(shape), torch.stack(high).view(shape), converters.adc_bits
        )

    def _sample(self, x: Tensor) -> None:
        sliced = self.layer.sliced()
        inputs = sliced.kept(self.layer.inputs(self.layer.vectors(x)))
        by_column = self.layer.setup.converters.adc_scope == "column"
        for array in range(sliced.layout.arrays):
            for k in range(sliced.layout.slices):
                sums = sliced.sums(inputs, array, k)
                rows = sums.reshape(-1, sums.shape[-1] if by_column else 1)
                wanted = SAMPLES // 32 if by_column else SAMPLES
                if (
                    len(rows) > wanted
                ):  # drawn with replacement: a permutation of millions takes longer than their sums
                    picked = torch.randint(len(rows), (wanted,), generator=torch.Generator().manual_seed(0))
                    rows = rows[picked.to(rows.device)]
                self.sums.setdefault((array, k), []).append(rows.cpu())
