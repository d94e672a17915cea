"""A live model: what stages hand to each other inside one process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from planish.weights import Counts

if TYPE_CHECKING:
    from torch import Tensor, nn

Batch = Mapping[str, "Tensor"]
Architecture = dict[str, Any]


@runtime_checkable
class Model(Protocol):
    """Anything that can be evaluated, timed and saved.

    Attributes:
        kind: the artifact kind it becomes (``"torch"``, ``"onnx"``, …).
        builder: name of the builder that saves and rebuilds it.
        tokenizer: the tokenizer that belongs to it, or None.
        runtime: what runs it, for tables: engine, device and number format.
    """

    kind: str
    builder: str
    tokenizer: Any

    @property
    def runtime(self) -> str: ...

    def __call__(self, batch: Batch) -> Tensor:
        """Logits for one batch; the batch's keys are the model's input names. No gradients are kept."""
        ...


class ModelBuilder(Protocol):
    """What a `Builder` record's target implements."""

    def save(self, model: Any, folder: Path) -> Architecture:
        """Write ``model`` to the empty ``folder`` and return what is needed, beside the files, to rebuild it (JSON)."""
        ...

    def load(self, folder: Path, architecture: Architecture, device: str, given: nn.Module | None) -> Any:
        """Rebuild the model. ``given`` is the module the user passed in memory, for builders that cannot make it.

        On the device ``"meta"`` no weights are read: the model serves to look at shapes.
        """
        ...

    def count(self, folder: Path, architecture: Architecture) -> Counts:
        """Count stored values and non-zeros from the files."""
        ...


class TorchModel:
    """A torch module with what belongs to it.

    Args:
        module: the network; methods change it in place.
        builder: name of the builder that can save it.
        tokenizer: its tokenizer, if any.
        storage: number format of the weight files (``"float16"``), kept when the module computes in another.
        patches: integer attributes that surgery set, by module path: what the architecture's own config cannot say.
    """

    kind = "torch"

    def __init__(
        self,
        module: nn.Module,
        builder: str,
        tokenizer: Any = None,
        storage: str = "float32",
        patches: dict[str, dict[str, int]] | None = None,
    ) -> None:
        self.module = module
        self.builder = builder
        self.tokenizer = tokenizer
        self.storage = storage
        self.patches = patches or {}

    @property
    def device(self) -> str:
        return str(next((t.device for t in self.module.parameters()), "cpu"))

    @property
    def runtime(self) -> str:
        dtype = next((str(p.dtype).removeprefix("torch.") for p in self.module.parameters()), "no weights")
        return f"torch eager, {self.device}, {dtype}"

    def __call__(self, batch: Batch) -> Tensor:
        import torch

        device = self.device
        with torch.inference_mode():
            output = self.module(**{name: value.to(device) for name, value in batch.items()})
        logits = getattr(output, "logits", output)
        if isinstance(logits, tuple):
            logits = logits[0]
        return logits  # type: ignore[no-any-return]

    def settle(self) -> None:
        """Round the weights to their storage format in place, so that the live module equals the saved one."""
        import torch

        storage = getattr(torch, self.storage)
        with torch.no_grad():
            for tensor in self.module.state_dict().values():
                if tensor.is_floating_point() and tensor.dtype != storage:
                    tensor.copy_(tensor.to(storage))

    def patch(self, changes: Mapping[str, Mapping[str, int]]) -> None:
        """Remember attributes that surgery set on submodules, so that the architecture can be rebuilt."""
        for path, attributes in changes.items():
            self.patches.setdefault(path, {}).update(attributes)


def distinct_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of ``module``, each shared tensor once and under its first name."""
    first: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    for name, tensor in state.items():
        first.setdefault(id(tensor), name)
    return {name: tensor.detach() for name, tensor in state.items() if first[id(tensor)] == name}
