"""A network on simulated crossbars as a model of planish: what the backend yields, saves and reopens."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from planish.errors import ConfigError
from planish.model import Batch, TorchModel
from planish_reram import devices
from planish_reram.chip import Physics, fault_maps
from planish_reram.config import ReramConfig
from planish_reram.layers import Setup
from planish_reram.mapping import mapped_layers, matrix
from planish_reram.network import crossbars, plain_attention, program_chips, to_crossbars
from planish_reram.protection import LayerProtection
from planish_reram.slicing import Layout


def setup_of(config: ReramConfig) -> Setup:
    """The options as the simulator takes them."""
    device = devices.device(config.device) if config.device != "custom" else devices.custom(
        config.program_noise, config.read_noise, config.drift
    )  # fmt: skip
    layout = Layout(config.weight_bits, config.cell_bits, config.mapping)
    physics = Physics(layout, config.rates, config.tile, device, config.seconds)
    return Setup(physics, config.converters, config.scale, config.percentile)


def chip_seeds(seed: int, chips: int) -> list[int]:
    """One seed a chip; runs with other seeds share none of the first hundred thousand."""
    return [100_000 * seed + chip for chip in range(chips)]


def digital_layers(module: nn.Module, config: ReramConfig) -> list[str]:
    """Paths that stay digital: ``skip`` and, on request, layers too small for a tile.

    Raises:
        ConfigError: such a layer, with ``small_layers="refuse"``; a pattern without a layer; a grouped convolution.
    """
    layers = mapped_layers(module, config.skip)
    return [*config.skip, *(name for name, layer in layers.items() if too_small(name, matrix(layer), config))]


def too_small(name: str, weight: Tensor, config: ReramConfig) -> bool:
    """Whether a matrix [out, in] fills a tile in neither direction and is to stay digital for that.

    Raises:
        ConfigError: it does, and ``small_layers="refuse"``.
    """
    (out, inputs), slices = weight.shape, config.weight_bits // config.cell_bits
    fills = inputs >= config.tile_rows or out * slices >= config.tile_cols
    if not fills and config.small_layers == "refuse":
        raise ConfigError(
            f"layer {name!r} ({out} x {inputs}, {slices} cells a weight) is too small for a tile of {config.tile_rows} x "
            f"{config.tile_cols}; choose a smaller tile, or small_layers = 'pad' or 'digital'"
        )
    return not fills and config.small_layers == "digital"


class ManyChips(ABC):
    """A model that runs on one of several chips at a time."""

    kind = "reram"
    builder = "reram"
    seeds: tuple[int, ...]

    @abstractmethod
    def use_chip(self, number: int) -> None:
        """Write the network onto that chip."""

    def chips(self) -> Iterator[int]:
        """Go through all chips; inside the loop the model runs on that one, afterwards on the first again."""
        try:
            for number in range(len(self.seeds)):
                self.use_chip(number)
                yield number
        finally:
            self.use_chip(0)


class ReramModel(ManyChips):
    """A torch network whose matrices sit on the crossbars of one simulated chip at a time.

    Args:
        inner: the network; its layers are swapped in place.
        config: options of the backend.
        seeds: one a chip; the model runs on the first.
        maps: fault maps of the first chip by layer; drawn from its seed where None.

    Raises:
        PlanishError: the network, the options and the protection that it carries do not fit together.
    """

    def __init__(
        self,
        inner: TorchModel,
        config: ReramConfig,
        seeds: Sequence[int],
        maps: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> None:
        self.inner = inner
        self.config = config
        self.seeds = tuple(seeds)
        self.tokenizer = inner.tokenizer
        self.maps = maps
        inner.settle()
        inner.module.eval().requires_grad_(False)
        setup, skip = setup_of(config), digital_layers(inner.module, config)
        protection = _protection(inner, config, mapped_layers(inner.module, skip))
        self.layers = to_crossbars(
            inner.module, setup, protection=protection, skip=skip, seeds=self.seeds[:1]
        )
        if maps is not None:
            self.use_chip(0)

    @property
    def module(self) -> nn.Module:
        return self.inner.module

    @property
    def fast(self) -> bool:
        """Whether every layer is one product with its composed weight."""
        return all(layer.exact for layer in crossbars(self.module).values())

    @property
    def runtime(self) -> str:
        c, converters = self.config, self.config.converters
        dac = "ideal" if converters.dac_bits is None else f"{converters.dac_bits} bit"
        adc = "ideal" if converters.adc_bits is None else f"{converters.adc_bits} bit"
        return (
            f"ReRAM simulator (no hardware), {self.inner.device}, {c.weight_bits}-bit weights in {c.cell_bits}-bit cells, "
            f"{c.mapping}, DAC {dac}, ADC {adc}"
        )

    def __call__(self, batch: Batch) -> Tensor:
        with plain_attention():
            return self.inner(batch)

    def use_chip(self, number: int) -> None:
        """Write the network onto chip ``number`` of ``config.chips``."""
        program_chips(self.module, [self.seeds[number]], self.maps if number == 0 else None)

    def first_maps(self) -> dict[str, list[Tensor]]:
        """Fault maps of the first chip, int8 [1, A, S or m, out, in] by layer and copy; none without faults."""
        if self.maps is not None:
            return {name: list(found) for name, found in self.maps.items()}
        if not self.config.rates.any:
            return {}
        return {
            name: fault_maps(
                (layer.out_features, layer.in_features),
                layer.setup.physics,
                layer.protection,
                self.seeds[:1],
                name,
            )
            for name, layer in crossbars(self.module).items()
        }


def _protection(
    inner: TorchModel, config: ReramConfig, layers: Mapping[str, nn.Module]
) -> dict[str, LayerProtection]:
    """What an earlier stage decided for each layer, with the backend's own bias correction."""
    found: dict[str, LayerProtection] = dict(getattr(inner, "protection", None) or {})
    planned: dict[str, Any] = (getattr(inner, "protection_layout", None) or {}) if found else {}
    for name in ("weight_bits", "cell_bits", "mapping"):
        if name in planned and planned[name] != getattr(config, name):
            raise ConfigError(
                f"{name} = {getattr(config, name)!r}: the model was protected for {name} = {planned[name]!r}; "
                "give both stages the same"
            )
    found = {name: plan for name, plan in found.items() if name in layers}
    if config.bias_correction:
        for name in layers:
            plan = found.get(name, LayerProtection())
            found[name] = dataclasses.replace(plan, bias_correction=config.bias_correction)
    return found
