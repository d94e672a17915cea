"""Run an ONNX folder in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from planish.errors import ArtifactError, PlanishError
from planish.weights import Counts
from planish_onnx import files, graph
from planish_onnx.runtime import onnxruntime

PAST, PRESENT = "past_key_values.", "present."
Array = Tensor | np.ndarray

_TYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(bool)": np.bool_,
}


class OnnxModel:
    """A model folder, loaded.

    Args:
        folder: holds `model.onnx` and the data file it names.
        threads: threads within an operator; None leaves the choice to ONNX Runtime.
        deterministic: the same bytes in give the same bytes out on the same machine and number of threads.
        providers: ONNX Runtime execution providers, in order of preference.

    Raises:
        ArtifactError: the folder is incomplete, damaged, reaches outside itself, or ONNX Runtime refuses it.
        PlanishError: a provider that this ONNX Runtime does not have.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        threads: int | None = None,
        deterministic: bool = True,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        self.folder = Path(folder)
        available = onnxruntime.get_available_providers()
        for name in providers:
            if name not in available:  # ONNX Runtime itself would fall back to the CPU
                raise PlanishError(f"providers: {name!r} is not one of {', '.join(available)}")
        files.check(self.folder)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.use_deterministic_compute = deterministic
        options.inter_op_num_threads = 1
        # Idle threads that spin take the processor from other programs and from other sessions in this one; on two
        # busy cores that about doubled the time of a call.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            graph_file = self.folder / files.GRAPH
            self.session = onnxruntime.InferenceSession(graph_file, options, providers=list(providers))
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise ArtifactError(
                f"{self.folder}: ONNX Runtime refuses the model ({files.first_line(error)})"
            ) from None
        self._types = {node.name: _TYPES.get(node.type) for node in self.session.get_inputs()}
        self._shapes = {node.name: node.shape for node in self.session.get_inputs()}
        outputs = [node.name for node in self.session.get_outputs()]
        self._logits = "logits" if "logits" in outputs else outputs[0]
        self._present = [name for name in outputs if name.startswith(PRESENT)]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names that a call takes. The KV cache of a cached decoder is not among them."""
        return tuple(name for name in self._types if not name.startswith(PAST))

    @property
    def number(self) -> str:
        """Number format of the logits."""
        kind = next(node.type for node in self.session.get_outputs() if node.name == self._logits)
        return {"tensor(float)": "float32", "tensor(double)": "float64"}.get(kind, kind[len("tensor(") : -1])

    @property
    def has_cache(self) -> bool:
        """Whether the graph takes and returns a KV cache."""
        return bool(self._present)

    def __call__(self, **batch: Array) -> Array:
        """Logits of a batch: a float32 tensor if any argument is a tensor, otherwise an array.

        Raises:
            PlanishError: an argument is missing, unknown, of a rank the graph does not take, or fractional where it
                takes integers.
        """
        feed = {name: _array(value) for name, value in batch.items()}
        logits = self._run(feed, [self._logits])[0]
        as_tensor = any(isinstance(value, Tensor) for value in batch.values())
        return torch.from_numpy(logits) if as_tensor else logits

    def generate(self, input_ids: Array, max_new_tokens: int, *, eos_token_id: int | None = None) -> Tensor:
        """Greedy text generation.

        Args:
            input_ids: prompts of one length, shape (batch, length); no padding.
            max_new_tokens: tokens to add, at least 1.
            eos_token_id: a row that has produced it goes on with it; generation stops when all rows have.

        Returns:
            int64 tensor of shape (batch, length + added).
        """
        if max_new_tokens < 1:
            raise PlanishError(f"max_new_tokens = {max_new_tokens}: must be at least 1")
        ids = _array(input_ids).astype(np.int64)
        if ids.ndim != 2 or not ids.size:
            raise PlanishError(f"input_ids: shape {ids.shape}, must be (batch, length) and not empty")
        finished = np.zeros(len(ids), dtype=bool)
        past = [PAST + name.removeprefix(PRESENT) for name in self._present]
        cache: dict[str, np.ndarray] = {}
        step = ids
        for _ in range(max_new_tokens):
            feed = self._decoder_feed(step, ids.shape[1]) | cache
            logits, *present = self._run(feed, [self._logits, *self._present])
            token = logits[:, -1].argmax(axis=-1).astype(np.int64)
            if eos_token_id is not None:
                token[finished] = eos_token_id
                finished |= token == eos_token_id
            ids = np.concatenate([ids, token[:, None]], axis=1)
            cache = dict(zip(past, present, strict=True))
            step = token[:, None] if self.has_cache else ids
            if finished.all():
                break
        return torch.from_numpy(ids)

    def counts(self) -> Counts:
        """Weights as stored, counted from the files."""
        return counts(self.folder)

    def _decoder_feed(self, step: np.ndarray, total: int) -> dict[str, np.ndarray]:
        """Inputs of one decoding step: `step` holds the last tokens of a text of `total` tokens."""
        feed = {"input_ids": step}
        if "attention_mask" in self._types:
            feed["attention_mask"] = np.ones((len(step), total), dtype=np.int64)
        if "position_ids" in self._types:
            feed["position_ids"] = np.tile(np.arange(total - step.shape[1], total), (len(step), 1))
        return feed

    def _run(self, feed: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        feed = self._with_defaults(feed)
        missing, unknown = self._types.keys() - feed.keys(), feed.keys() - self._types.keys()
        if missing or unknown:
            fault = f"{'missing' if missing else 'unknown'} {', '.join(sorted(missing or unknown))}"
            raise PlanishError(f"{self.folder.name}: {fault} (the graph takes {', '.join(self.inputs)})")
        for name, value in feed.items():
            wanted = np.dtype(self._types[name])
            if wanted.kind in "iu" and value.dtype.kind not in "iub":
                raise PlanishError(f"{self.folder.name}: {name} is {value.dtype}, the graph takes {wanted}")
        feed = {name: np.ascontiguousarray(value, dtype=self._types[name]) for name, value in feed.items()}
        try:
            return list(self.session.run(outputs, feed))
        except Exception as error:  # ONNX Runtime's errors share no base class
            shapes = ", ".join(f"{name}{feed[name].shape}" for name in self.inputs)
            raise PlanishError(
                f"{self.folder.name}: cannot run {shapes}: {files.first_line(error)}"
            ) from None

    def _with_defaults(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A cached decoder called without its cache: an empty one, all tokens visible, positions from 0."""
        if not self.has_cache or "input_ids" not in feed:
            return feed
        ids = feed["input_ids"]
        feed = self._decoder_feed(ids, ids.shape[-1]) | feed
        for name, shape in self._shapes.items():
            if name.startswith(PAST) and name not in feed:
                feed[name] = np.zeros((len(ids), shape[1], 0, shape[3]), dtype=self._types[name])
        return feed


def counts(folder: Path) -> Counts:
    """Count the stored weights of a folder: values that stand for a number other than 0 are non-zero.

    An int8 value equal to its zero point stands for 0. Scales, zero points and constants of the graph are no weights.
    """
    files.check(folder)
    tensors = ir.load(folder / files.GRAPH).graph.initializers
    parameters = nonzeros = 0
    layers: dict[str, tuple[int, int]] = {}
    for name, value in tensors.items():
        tensor = value.const_value
        if tensor is None or not _is_weight(name, tensor):
            continue
        numbers = tensor.numpy()
        point = tensors.get(f"{name.removesuffix('_quantized')}_zero_point")
        zero = _zero_point(point, numbers.shape) if name.endswith("_quantized") else numbers.dtype.type(0)
        filled = int(np.count_nonzero(numbers != zero))
        parameters += numbers.size
        nonzeros += filled
        if numbers.ndim >= 2:
            layers[name.removesuffix("_quantized").removesuffix("_Transposed")] = (numbers.size, filled)
    return Counts(parameters, nonzeros, layers)


def _is_weight(name: str, tensor: ir.TensorProtocol) -> bool:
    if name.startswith(graph.CONSTANT) or name.endswith(("_scale", "_zero_point")):
        return False
    return tensor.dtype.is_floating_point() or name.endswith("_quantized")


def _zero_point(point: ir.Value | None, shape: tuple[int, ...]) -> np.ndarray:
    """The zero point in a shape that compares with the weight: one number, or one a column."""
    if point is None or point.const_value is None:
        return np.zeros((), dtype=np.int8)
    values = point.const_value.numpy()
    return values.reshape(()) if values.size == 1 else values.reshape(*[1] * (len(shape) - 1), -1)


def _array(value: Array) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
