"""Layers that compute on crossbars. They keep the original parameters under their names, so a state dict stays the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from planish.errors import ConfigError, PlanishError
from planish_reram.chip import NO_PROTECTION, Cells, Physics, compose, program
from planish_reram.converters import Adc, Converters, Inputs, convert_inputs
from planish_reram.devices import generator
from planish_reram.mapping import is_transposed
from planish_reram.moments import read_spread
from planish_reram.mvm import Plan, Sliced, fast
from planish_reram.protection import LayerProtection
from planish_reram.quantise import Quantised, Scope, quantise


@dataclass(frozen=True, slots=True)
class Setup:
    """How a matrix is put onto crossbars and read.

    Attributes:
        physics: layout, faults, tile, device.
        converters: DAC and ADC.
        scope, percentile: of the weight's scale; see `quantise`.
        dtype: number format of the simulation; float64 for reference.
    """

    physics: Physics = field(default_factory=Physics)
    converters: Converters = field(default_factory=Converters)
    scope: Scope = "tensor"
    percentile: float | None = None
    dtype: torch.dtype = torch.float32


class Crossbar(nn.Module):
    """A weight matrix on the crossbars of one or more chips.

    With several chips the leading dimension of an input is chips * N, one chip after the other.

    Args:
        layer: an ``nn.Linear``, ``nn.Conv2d`` or transformers ``Conv1D``; its parameters are shared, not copied.
        setup: see `Setup`.
        name: of the layer in its network; part of the seed of every cell.
        protection: see `LayerProtection`.
        seeds: one a chip.
    """

    def __init__(
        self,
        layer: Any,
        setup: Setup | None = None,
        name: int | str = 0,
        protection: LayerProtection = NO_PROTECTION,
        seeds: Sequence[int] = (0,),
    ) -> None:
        super().__init__()
        self.weight: nn.Parameter = layer.weight
        self.bias: nn.Parameter | None = layer.bias
        self.transposed = is_transposed(layer)
        self.setup = setup or Setup()
        self.name = name
        self.protection = protection
        self.adc: Adc | None = None
        self.input_limit: float | None = None
        self.ideal_adc = False  # while ranges are being measured
        self.program(seeds)

    @property
    def out_features(self) -> int:
        return int(self.matrix.shape[0])

    @property
    def in_features(self) -> int:
        return int(self.matrix.shape[1])

    @property
    def matrix(self) -> Tensor:
        """The weight [out, in]."""
        return self.weight.t() if self.transposed else self.weight.flatten(1)

    @property
    def exact(self) -> bool:
        """Whether one product with the effective weight gives exactly what the tiles would."""
        late_median = self.protection.vote == "output" and self.protection.deepest > 0
        digitised = self.setup.converters.adc_bits is not None and not self.ideal_adc
        return not (late_median or digitised)

    def program(self, seeds: Sequence[int], maps: Sequence[Tensor] | None = None) -> None:
        """Write the weight into the cells of one chip a seed; ``maps`` are known fault maps (see `chip.program`)."""
        physics = self.setup.physics
        self.seeds = tuple(seeds)
        self.quantised = self._quantised()
        self.cells = program(self.quantised, physics, self.seeds, self.name, self.protection, maps)
        self.rewind()
        self.forget()

    def rewind(self) -> None:
        """Start the draws of read noise anew, as after programming."""
        self._reads = 0

    def forward(self, x: Tensor) -> Tensor:
        return self._bias(self.product(self.vectors(x)))

    def vectors(self, x: Tensor) -> Tensor:
        """The input vectors [chips * N, ..., in] in a layer's input."""
        return x

    def inputs(self, vectors: Tensor) -> Inputs:
        """Input vectors as the word lines see them, [chips, N, in]; no gradient passes a converter."""
        chips = len(self.seeds)
        if vectors.shape[0] % chips:
            raise PlanishError(
                f"layer {self.name!r}: {vectors.shape[0]} samples cannot be shared out to {chips} chips"
            )
        flat = vectors.detach().reshape(chips, -1, vectors.shape[-1]).to(self.setup.dtype)
        return convert_inputs(flat, self.setup.converters, self.input_limit)

    def product(self, vectors: Tensor) -> Tensor:
        """``vectors`` [chips * N, ..., in] times the weight, without the bias, in their format."""
        one = self._one_matrix(vectors.device)
        if one is None:
            inputs = self.inputs(vectors)
            y = fast(inputs, self.effective_weight()) if self.exact else self.sliced()(inputs)
            return y.reshape(*vectors.shape[:-1], y.shape[-1]).to(vectors.dtype)
        # The plain case without a detour: beside a small product every call counts.
        plain = vectors.detach() if vectors.requires_grad else vectors
        if plain.dtype != one.dtype:
            plain = plain.to(one.dtype)
        values, scale = convert_inputs(plain, self.setup.converters, self.input_limit)
        y = nn.functional.linear(values, one)
        if isinstance(scale, Tensor):
            y.mul_(scale)
        return y if y.dtype == vectors.dtype else y.to(vectors.dtype)

    def _one_matrix(self, device: torch.device) -> Tensor | None:
        """[out, in], where one product with it is all there is to do: one chip, exact, the same at each read.

        The step of inputs with one range for all is multiplied in.
        """
        if self._one is None:
            noise = self.setup.physics.device
            if not self.exact or len(self.seeds) > 1 or (noise is not None and noise.read_noise):
                return None
            self._one = self.effective_weight()[0]
            if self.input_limit is not None and self.setup.converters.dac_bits is not None:
                self._one = self._one * self.setup.converters.step(self.input_limit)
        elif self._one.device != device:
            self.forget()
            return self._one_matrix(device)
        return self._one

    def effective_weight(self) -> Tensor:
        """[chips, out, in], composed once a chip; with read noise, a fresh read each time."""
        self._follow()
        if self._effective is None:
            self._effective = compose(
                self.cells, self.quantised, self.setup.physics, self.protection, self.setup.dtype
            )
        device = self.setup.physics.device
        if device is None or not device.read_noise:
            return self._effective
        physics = self.setup.physics
        spread = read_spread(
            device.read_noise, self.quantised, physics.layout, physics.rates, self.protection
        )
        return self._effective + self._noise(self._effective.shape) * spread

    def sliced(self) -> Sliced:
        """The cells laid out for products tile by tile."""
        self._follow()
        device = self.setup.physics.device
        noisy = device is not None and device.read_noise > 0
        if self._sliced is None or noisy:
            cells = self.cells
            if noisy and device is not None:
                spread = device.read_noise * cells.layout.top
                cells = Cells(
                    cells.levels.to(self.setup.dtype) + self._noise(cells.levels.shape) * spread, cells.layout
                )
            plan = Plan(
                self.quantised, self.setup.converters, self.setup.physics.tile[0], None if self.ideal_adc else self._adc(),
                self.protection, self.setup.physics.rates,
            )  # fmt: skip
            self._sliced = Sliced(cells, plan, torch.float64 if self.setup.dtype == torch.float64 else None)
        return self._sliced

    def forget(self) -> None:
        """Drop what is computed from the cells, after a change of converters or ranges."""
        self._effective: Tensor | None = None
        self._one: Tensor | None = None
        self._sliced: Sliced | None = None

    def _adc(self) -> Adc | None:
        converters = self.setup.converters
        if converters.adc_bits is None:
            return None
        if self.adc is not None:
            return self.adc
        if converters.adc_range == "max" and converters.dac_bits is not None:
            rows = min(self.setup.physics.tile[0], self.cells.levels.shape[-1])
            self.adc = Adc.of_max(self.setup.physics.layout, rows, converters)
            return self.adc
        raise PlanishError(
            f"layer {self.name!r}: adc_bits = {converters.adc_bits} needs a range: calibrate the network first"
        )

    def _quantised(self) -> Quantised:
        weight = self.matrix.detach()
        if self.setup.dtype == torch.float64:
            weight = weight.double()
        try:
            return quantise(
                weight, self.setup.physics.layout.weight_bits, self.setup.scope, self.setup.percentile
            )
        except PlanishError as error:
            raise PlanishError(f"layer {self.name!r}: {error}") from None

    def _follow(self) -> None:
        """Move the chip to where the parameters are."""
        device = self.weight.device
        if self.cells.levels.device != device:
            self.cells = Cells(self.cells.levels.to(device), self.cells.layout)
            q = self.quantised
            self.quantised = Quantised(q.q.to(device), q.scale.to(device), q.bits)
            self.forget()

    def _noise(self, shape: torch.Size) -> Tensor:
        """Standard normal draws of one read: drawn on the CPU, so that devices agree."""
        self._reads += 1
        draws = generator(f"{self.seeds}/{self.name}/read/{self._reads}")
        return torch.randn(shape, generator=draws, dtype=self.setup.dtype).to(self.weight.device)

    def _bias(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        layout = self.setup.physics.layout
        return f"{self.in_features}, {self.out_features}, {layout}, chips={len(self.seeds)}"


class CrossbarLinear(Crossbar):
    """A linear layer on crossbars."""


class CrossbarConv2d(Crossbar):
    """A convolution on crossbars: every patch of the input drives the word lines once.

    Raises:
        ConfigError: the convolution has groups.
    """

    def __init__(self, layer: nn.Conv2d, *args: Any, **kwargs: Any) -> None:
        if layer.groups > 1:
            raise ConfigError(f"a convolution with groups = {layer.groups} has no crossbar mapping here")
        super().__init__(layer, *args, **kwargs)
        self.kernel_size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.pads = tuple(layer._reversed_padding_repeated_twice)
        self.pad_mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode

    def forward(self, x: Tensor) -> Tensor:
        """x [chips * N, channels, height, width]."""
        y = self._bias(self.product(self.vectors(x)))
        low, high = self.pads[::2], self.pads[1::2]  # of the width first, then of the height
        height, width = (
            (x.shape[2 + i] + low[1 - i] + high[1 - i] - self.dilation[i] * (self.kernel_size[i] - 1) - 1)
            // self.stride[i]
            + 1
            for i in (0, 1)
        )
        return y.transpose(1, 2).reshape(y.shape[0], -1, height, width)

    def vectors(self, x: Tensor) -> Tensor:
        """Patches [chips * N, positions, channels * kernel height * kernel width]."""
        padded = nn.functional.pad(x, self.pads, mode=self.pad_mode)
        return nn.functional.unfold(padded, self.kernel_size, self.dilation, 0, self.stride).transpose(1, 2)


def crossbar(layer: nn.Module, *args: Any, **kwargs: Any) -> Crossbar:
    """The crossbar layer that stands for ``layer``."""
    if isinstance(layer, nn.Conv2d):
        return CrossbarConv2d(layer, *args, **kwargs)
    return CrossbarLinear(layer, *args, **kwargs)
