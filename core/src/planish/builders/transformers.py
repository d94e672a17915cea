"""Models of the transformers library: rebuilt from their config, with what surgery changed put back."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish import weights
from planish.artifact import write_json
from planish.errors import ArtifactError
from planish.model import Architecture, TorchModel, distinct_state
from planish.weights import Counts

if TYPE_CHECKING:
    from torch import nn

TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


class TransformersBuilder:
    """Saves with ``save_pretrained``, so the folder opens with plain transformers whenever the config can express it.

    Two cases need more than the config: blocks of different widths, and families whose config cannot say that heads
    were removed (GPT-2, OPT). Their artifact keeps the raw tensors and the attributes that surgery set; loading builds
    the module from the config and brings every parameter to its stored shape.
    """

    def save(self, model: TorchModel, folder: Path) -> Architecture:
        model.settle()
        module: Any = model.module
        config = module.config
        computing, config.dtype = getattr(config, "dtype", None), model.storage
        try:
            if model.patches:
                config.architectures = [type(module).__name__]
                config.save_pretrained(folder)
                weights.write(folder / weights.SINGLE, _stored(module, model.storage))
            else:
                with quiet(), weights.disk_errors(folder / weights.SINGLE):
                    module.save_pretrained(folder, state_dict=_stored(module, model.storage))
        finally:
            config.dtype = computing
        if model.tokenizer is not None:
            _save_tokenizer(model.tokenizer, folder)
        patches = copy.deepcopy(model.patches)  # the next stage adds to the live model's own
        return {"class": type(module).__name__, "storage": model.storage, "patches": patches}

    def load(self, folder: Path, architecture: Architecture, device: str, given: Any = None) -> TorchModel:
        read_config(folder)
        cls = model_class(str(architecture["class"]))
        patches: dict[str, dict[str, int]] = copy.deepcopy(architecture.get("patches", {}))
        storage = str(architecture.get("storage", "float32"))
        if device == "meta":
            module = _from_config(cls, folder, device)
        elif patches:
            module = _from_config(cls, folder, "cpu")
            _restore(module, patches, folder, compute_dtype(storage, "cpu"))
        else:
            module = _from_pretrained(cls, folder, compute_dtype(storage, "cpu"))
        if device != "meta":
            module = module.to(device=device, dtype=compute_dtype(storage, device))
        module.eval()
        return TorchModel(module, "transformers", load_tokenizer(folder), storage, patches)

    def count(self, folder: Path, architecture: Architecture) -> Counts:
        return weights.count(folder)


def model_class(name: str) -> Any:
    """The transformers class of that name.

    Raises:
        ArtifactError: there is none, or it is no model class. Nothing but transformers' own classes can be named.
    """
    import transformers

    cls = getattr(transformers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise ArtifactError(f"transformers {transformers.__version__} has no model class {name!r}")
    return cls


def describe(folder: Path) -> Architecture:
    """The architecture of a plain transformers folder, read from its config and weight files.

    Raises:
        ArtifactError: no config, no weights, damaged weights, or a config that names no class.
    """
    names = read_config(folder).get("architectures") or []
    if len(names) != 1:
        raise ArtifactError(f"{folder / 'config.json'}: 'architectures' must name one class, found {names}")
    weights.check(folder)
    return {"class": names[0], "storage": storage_dtype(folder), "patches": {}}


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a transformers folder.

    Raises:
        ArtifactError: there is none, it is damaged, or it names code that is not transformers' own: a module beside the
            weights (``auto_map``), or a kernel that the library would fetch from the hub (``org/name``).
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ArtifactError(
            f"{folder}: no config.json; a model folder holds config.json and {weights.SINGLE}"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        for name, value in _entries(config):
            if name == "auto_map":
                raise ArtifactError(f"{path}: the model brings its own code (auto_map), which is not run")
            if "_implementation" in name and "/" in str(value):
                raise ArtifactError(f"{path}: {name} = {value!r} names code on the hub, which is not run")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path}: not a model config ({error})") from None
    return config  # type: ignore[no-any-return]


def _entries(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key and value of a config and of the configs in it."""
    for name, value in config.items():
        yield name, value
        if isinstance(value, dict):
            yield from _entries(value)


def storage_dtype(folder: Path) -> str:
    """Number format of most values in the weight files, as torch names it."""
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    volume: dict[str, int] = {}
    for path in weights.files(folder):
        for entry in weights.header(path).values():
            begin, end = entry["data_offsets"]
            volume[entry["dtype"]] = volume.get(entry["dtype"], 0) + end - begin
    return names.get(max(volume, key=lambda dtype: volume[dtype], default="F32"), "float32")


def compute_dtype(storage: str, device: str) -> Any:
    """16-bit weights compute in float32 on a CPU, whose 16-bit arithmetic is slow and coarse; elsewhere as stored."""
    import torch

    return torch.float32 if device == "cpu" and storage != "float64" else getattr(torch, storage)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in ``folder``, or None when it holds none."""
    if not any((folder / name).is_file() for name in TOKENIZER):
        return None
    from transformers import AutoTokenizer

    try:
        # False, not the default: the default asks on the terminal whether to run code that the folder names.
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raise bare Exception for damaged files
        raise ArtifactError(f"{folder}: the tokenizer does not load ({_first_line(error)})") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the library's advice and bars; errors still come through."""
    from transformers.utils import logging as library

    level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity(logging.ERROR)
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Without what transformers 5 notes about where it was loaded from: equal tokenizers give equal files."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key not in ("is_local", "local_files_only")}
    if kept != config:
        write_json(path, kept)


def _stored(module: nn.Module, storage: str) -> dict[str, Any]:
    """The state in its storage format."""
    import torch

    dtype = getattr(torch, storage)
    state = distinct_state(module)
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()
    }


def _from_pretrained(cls: Any, folder: Path, dtype: Any) -> nn.Module:
    try:
        with quiet():
            module, info = cls.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:  # the library raises many kinds for a folder that does not fit its config
        raise ArtifactError(f"{folder}: {cls.__name__} does not load ({_first_line(error)})") from None
    if missing := sorted(info["missing_keys"]):
        raise ArtifactError(
            f"{folder}: weights are missing: {', '.join(missing[:3])} ({len(missing)} in all)"
        )
    return module  # type: ignore[no-any-return]


def _from_config(cls: Any, folder: Path, device: str) -> nn.Module:
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config.dtype = torch.float32
    with quiet(), torch.device(device):
        return cls(config)  # type: ignore[no-any-return]


def _restore(module: nn.Module, patches: dict[str, dict[str, int]], folder: Path, dtype: Any) -> None:
    """Put back what surgery set, then load every tensor at its stored shape."""
    import torch
    from torch import nn

    for path, attributes in patches.items():
        target = _submodule(module, path, folder)
        for name, value in attributes.items():
            if not isinstance(getattr(target, name, None), int) or not isinstance(value, int):
                raise ArtifactError(f"{folder}: {path or 'model'} has no integer attribute {name!r}")
            setattr(target, name, value)
    wanted = {name for name, _ in module.named_parameters()}
    for name, tensor in weights.tensors(folder):
        path, _, leaf = name.rpartition(".")
        owner = _submodule(module, path, folder)
        wanted.discard(name)
        if leaf in owner._buffers:
            owner._buffers[leaf] = tensor
            continue
        owner._parameters[leaf] = nn.Parameter(tensor.to(dtype), requires_grad=tensor.is_floating_point())
        if isinstance(owner, nn.Linear) and leaf == "weight":
            owner.out_features, owner.in_features = tensor.shape
    if wanted:
        raise ArtifactError(
            f"{folder}: weights are missing: {', '.join(sorted(wanted)[:3])} ({len(wanted)} in all)"
        )
    with torch.no_grad():
        module.tie_weights()  # type: ignore[operator]


def _submodule(module: nn.Module, path: str, folder: Path) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        raise ArtifactError(f"{folder}: {type(module).__name__} has no part {path!r}") from None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
