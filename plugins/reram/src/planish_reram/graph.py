"""An ONNX graph on crossbars: its weight matrices are replaced by what the cells amount to, and ONNX Runtime runs the rest.

The composed path only: converters are ideal. Every operator of the graph is left as it is.
"""

from __future__ import annotations

import fnmatch
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from planish.builders.transformers import load_tokenizer
from planish.errors import ConfigError
from planish.model import Batch
from planish_onnx.files import DATA, GRAPH, INLINE_BYTES
from planish_onnx.files import check as check_folder
from planish_onnx.session import OnnxModel
from planish_onnx.session import counts as stored_counts
from planish_reram.chip import Physics, compose, fault_maps, program
from planish_reram.config import ReramConfig
from planish_reram.energy import Footprint, footprint
from planish_reram.model import ManyChips, setup_of, too_small
from planish_reram.protection import LayerProtection
from planish_reram.quantise import quantise

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


class OnnxOnCrossbars(ManyChips):
    """A folder with `model.onnx` whose matrices sit on the crossbars of one simulated chip at a time.

    Args:
        folder: as the backend ``onnx`` writes it.
        config: options of the backend; those of the converters must be ideal, except for the DAC, which is not modelled.
        seeds: one a chip. maps: fault maps of the first chip by layer; drawn from its seed where empty.

    Raises:
        ConfigError: an option that needs the sliced path, no matrix in float, a convolution with groups, or a pattern of
            ``skip`` or a fault map that names no layer.
    """

    fast = True

    def __init__(
        self,
        folder: Path,
        config: ReramConfig,
        seeds: Sequence[int],
        maps: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> None:
        if config.converters.adc_bits is not None:
            raise ConfigError(
                "adc_bits: an ONNX graph is simulated with composed weights, which needs adc_bits = 'ideal'; "
                "start from the torch model to simulate converters"
            )
        self.setup = setup_of(config)
        if self.setup.physics.device is not None and self.setup.physics.device.read_noise:
            raise ConfigError(
                f"device = {config.device!r} has read noise, which a composed ONNX graph cannot have"
            )
        check_folder(folder)
        self.folder = folder
        self.config = config
        self.seeds = tuple(seeds)
        self.maps = dict(maps or {})
        self.tokenizer = load_tokenizer(folder)
        self.graph = onnx.load(folder / GRAPH)
        every = {found.layer: found.weight for found in _matrices(self.graph)}
        for pattern in config.skip:
            if not fnmatch.filter(every, pattern):
                raise ConfigError(f"skip = {pattern!r} matches no layer (the graph has {', '.join(every)})")
        self.matrices = {
            name: weight
            for name, weight in every.items()
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in config.skip)
            and not too_small(name, weight, config)
        }
        if not self.matrices:
            raise ConfigError(f"{folder.name}: the graph holds no matrix in float to put onto crossbars")
        if unknown := [name for name in self.maps if name not in self.matrices]:
            raise ConfigError(f"the fault maps name the layer {unknown[0]!r}, which is not on crossbars")
        self.layers = list(self.matrices)
        self.use_chip(0)

    @property
    def runtime(self) -> str:
        c = self.config
        return (
            f"ReRAM simulator (no hardware) in ONNX Runtime, cpu, {c.weight_bits}-bit weights in {c.cell_bits}-bit cells, "
            f"{c.mapping}, ideal converters"
        )

    def __call__(self, batch: Batch) -> Tensor:
        return torch.as_tensor(self.session(**batch))

    def use_chip(self, number: int) -> None:
        """Compose the weights of chip ``number`` and open a session with them."""
        edited = onnx.ModelProto()
        edited.CopyFrom(self.graph)
        for found in _matrices(edited):
            if found.layer in self.matrices:
                found.store(self._effective(found.layer, found.weight, number))
        with tempfile.TemporaryDirectory(prefix="reram-") as scratch:
            onnx.save(
                edited,
                Path(scratch) / GRAPH,
                save_as_external_data=True,
                location=DATA,
                size_threshold=INLINE_BYTES,
            )
            self.session = OnnxModel(Path(scratch))

    def left_digital(self) -> dict[str, int]:
        """Weights of every stored matrix that is not on crossbars: tables, what int8 holds, what the options left out."""
        return {
            name: size
            for name, (size, _) in stored_counts(self.folder).layers.items()
            if name.removesuffix(".weight") not in self.matrices
        }

    def footprints(self) -> dict[str, tuple[Footprint, int]]:
        """Of each matrix, for one input vector: a graph does not tell how many an inference has."""
        physics = self.setup.physics
        return {
            name: (
                footprint(
                    (matrix.shape[0], matrix.shape[1]), physics.layout, physics.tile, self.setup.converters
                ),
                1,
            )
            for name, matrix in self.matrices.items()
        }

    def first_maps(self) -> dict[str, list[Tensor]]:
        """Fault maps of the first chip, int8 [1, A, S, out, in] by layer; none without faults."""
        if self.maps or not self.config.rates.any:
            return {name: list(found) for name, found in self.maps.items()}
        return {
            name: fault_maps(
                (matrix.shape[0], matrix.shape[1]),
                self.setup.physics,
                LayerProtection(),
                self.seeds[:1],
                name,
            )
            for name, matrix in self.matrices.items()
        }

    def _effective(self, name: str, matrix: Tensor, number: int) -> Tensor:
        physics: Physics = self.setup.physics
        plan = LayerProtection(bias_correction=self.config.bias_correction)
        quantised = quantise(matrix, self.config.weight_bits, self.config.scale, self.config.percentile)
        maps = self.maps.get(name) if number == 0 else None
        cells = program(quantised, physics, [self.seeds[number]], name, plan, maps)
        return compose(cells, quantised, physics, plan)[0]


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A weight matrix in a graph: which layer it is, where it is stored, [out, in], and whether it is stored as [in, out]."""

    layer: str
    initializer: onnx.TensorProto
    weight: Tensor
    transposed: bool

    def store(self, weight: Tensor) -> None:
        """Put another weight [out, in] in its place."""
        shape, stored = tuple(self.initializer.dims), numpy_helper.to_array(self.initializer)
        values = (weight.t() if self.transposed else weight).reshape(shape).numpy().astype(stored.dtype)
        self.initializer.CopyFrom(numpy_helper.from_array(values, self.initializer.name))


def _matrices(model: onnx.ModelProto) -> Iterator[_Matrix]:
    """Every float matrix that is read by MatMul, Gemm or Conv alone, all in one way.

    Raises:
        ConfigError: a convolution has groups.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type in FLOATS}
    roles: dict[str, set[str]] = {}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name in stored:
                roles.setdefault(name, set()).add(_role(node, place))
    for name, tensor in stored.items():
        role = next(iter(roles.get(name, set()))) if len(roles.get(name, set())) == 1 else ""
        layer = name.removesuffix("_Transposed").removesuffix(
            ".weight"
        )  # exported weights keep their torch names
        if role == "grouped":
            raise ConfigError(f"layer {layer!r}: a convolution with groups has no crossbar mapping here")
        if not role or (role != "conv" and len(tensor.dims) != 2):
            continue
        values = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        transposed = role == "in-out"
        yield _Matrix(layer, tensor, values.t() if transposed else values.flatten(1), transposed)


def _role(node: onnx.NodeProto, place: int) -> str:
    """How a node multiplies by its input number ``place``; empty where it is not a matrix of a layer."""
    attributes = {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}
    if node.op_type == "MatMul" and place == 1:
        return "in-out"
    if node.op_type == "Gemm" and place == 1:
        return "out-in" if attributes.get("transB") else "in-out"
    if node.op_type == "Conv" and place == 1:
        return "grouped" if attributes.get("group", 1) > 1 else "conv"
    return ""
