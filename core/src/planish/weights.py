"""Weight files: safetensors only, checked before they are trusted, counted without loading the model."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATING = {"F64", "F32", "F16", "BF16"}
QUANTISED = {"I8", "U8", "F8_E4M3", "F8_E5M2"}

_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_MAX_HEADER = 100 << 20


@dataclass(frozen=True, slots=True)
class Counts:
    """Stored values of a model: in all, non-zero, and layer by layer.

    ``layers`` maps the name of every weight with two or more dimensions to (values, non-zeros).
    """

    parameters: int
    nonzeros: int
    layers: dict[str, tuple[int, int]]

    @property
    def sparsity(self) -> float:
        """Share of zeros among all stored values."""
        return 1.0 - self.nonzeros / self.parameters if self.parameters else 0.0


def files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, from its index where it is sharded.

    Raises:
        ArtifactError: there is none (pickled weights are named and refused), a shard is missing, or the index names a
            file outside the folder.
    """
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ArtifactError(f"{index}: not a safetensors index ({error})") from None
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise ArtifactError(f"{index}: shard {name!r} lies outside the folder")
            if not (folder / name).is_file():
                raise ArtifactError(f"{index}: shard {name!r} is missing")
        return [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES) if folder.is_dir() else []
    if pickled:
        raise ArtifactError(
            f"{folder}: weights in {pickled[0]!r} are pickled and are not opened, because reading a pickle runs code; "
            f"convert them to {SINGLE}"
        )
    raise ArtifactError(f"{folder}: no {SINGLE} or {INDEX}")


def header(path: Path) -> dict[str, Any]:
    """The tensor table of a safetensors file: name -> {dtype, shape, data_offsets}.

    Raises:
        ArtifactError: the file is a pickle or zip archive in disguise, is damaged, or is shorter than its table says.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        table_follows = len(start) == 8 and stream.read(1) == b"{"
        # A length may end in 0x80 as well; what follows it tells a table from a pickle.
        if not table_follows and start.startswith((b"\x80", b"PK\x03\x04")):
            raise ArtifactError(
                f"{path}: this is a pickle, not safetensors; it is not opened, because reading it runs code"
            )
        if not table_follows or length > min(size - 8, _MAX_HEADER):
            raise ArtifactError(f"{path}: not a safetensors file, or truncated ({size} bytes)")
        stream.seek(8)
        try:
            table: dict[str, Any] = json.loads(stream.read(length))
            table.pop("__metadata__", None)
            ends = [_end(entry) for entry in table.values()]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArtifactError(f"{path}: damaged safetensors header ({error})") from None
    needed = 8 + length + max(ends, default=0)
    if size < needed:
        raise ArtifactError(f"{path}: truncated: {size} bytes of {needed}")
    return table


def _end(entry: dict[str, Any]) -> int:
    """Where a tensor's bytes end, from its line in the table."""
    begin, end = map(int, entry["data_offsets"])
    if not isinstance(entry["dtype"], str) or not isinstance(entry["shape"], list) or not 0 <= begin <= end:
        raise ValueError("a tensor's dtype, shape or offsets make no sense")
    return end


def check(folder: Path, dtypes: set[str] = FLOATING) -> None:
    """Refuse a model folder whose weights are damaged, disguised or of a number format that is not expected.

    Matrices must be of one of ``dtypes``; tables and counters of fewer than two dimensions may be integers.

    Raises:
        ArtifactError: naming the file and the tensor.
    """
    for path in files(folder):
        for name, entry in header(path).items():
            if entry["dtype"] not in dtypes and len(entry["shape"]) >= 2:
                raise ArtifactError(
                    f"{path}: tensor {name!r} is {entry['dtype']}, not one of {', '.join(sorted(dtypes))}"
                )


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a folder one by one, shard by shard, on the CPU."""
    from safetensors import SafetensorError, safe_open

    for path in files(folder):
        header(path)
        try:
            with safe_open(path, framework="pt") as shard:
                for name in sorted(shard.keys()):
                    yield name, shard.get_tensor(name)
        except SafetensorError as error:
            raise ArtifactError(f"{path}: {error}") from None


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of one file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header(path)
    try:
        values: dict[str, Tensor] = load_file(path)
        return values
    except SafetensorError as error:
        raise ArtifactError(f"{path}: {error}") from None


def write(path: Path, values: Mapping[str, Tensor]) -> None:
    """Write ``values`` to one file, whole or not at all; the same values give the same bytes.

    Tensors that share memory are written once for each name.

    Raises:
        OSError: the disk is full or the folder read-only; nothing is left behind.
    """
    from safetensors.torch import save_file

    temporary = path.with_name(path.name + ".part")
    try:
        own = {name: values[name].detach().cpu().contiguous().clone() for name in sorted(values)}
        with disk_errors(path):
            # One key only: the order of several metadata keys in the file is not defined.
            save_file(own, temporary, metadata={"format": "pt"})
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise what safetensors reports about the disk as the OSError that it is."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from None


def count(folder: Path) -> Counts:
    """Count values and non-zeros of the stored tensors, one tensor in memory at a time."""
    parameters = nonzeros = 0
    layers: dict[str, tuple[int, int]] = {}
    for name, tensor in tensors(folder):
        filled = int(tensor.count_nonzero())
        parameters += tensor.numel()
        nonzeros += filled
        if tensor.dim() >= 2:
            layers[name] = (tensor.numel(), filled)
    return Counts(parameters, nonzeros, layers)
