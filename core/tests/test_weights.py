"""Weight files: what is genuine is read and counted, everything else is refused before it is opened."""

from __future__ import annotations

import contextlib
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import save_file

from planish import weights
from planish.errors import ArtifactError

arrays = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    elements=st.sampled_from([0.0, 1.5, -2.0]),
)


@settings(deadline=None)
@given(st.dictionaries(st.text("abz.w", min_size=1, max_size=9), arrays, max_size=4))
def test_round_trip_and_counts(values: dict[str, np.ndarray]) -> None:
    import tempfile

    tensors = {name: torch.from_numpy(value) for name, value in values.items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights.write(folder / weights.SINGLE, tensors)
        assert [p.name for p in folder.iterdir()] == [weights.SINGLE]
        read = weights.read(folder / weights.SINGLE)
        again = dict(weights.tensors(folder))
        counts = weights.count(folder)
        table = weights.header(folder / weights.SINGLE)
    assert read.keys() == tensors.keys() == again.keys() == table.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(read[name], tensor, rtol=0, atol=0)
        assert table[name]["shape"] == list(tensor.shape)
    assert counts.parameters == sum(t.numel() for t in tensors.values())
    assert counts.nonzeros == sum(int((t != 0).sum()) for t in tensors.values())
    assert counts.layers == {
        n: (t.numel(), int((t != 0).sum())) for n, t in sorted(tensors.items()) if t.dim() >= 2
    }


def test_sparsity() -> None:
    assert weights.Counts(8, 2, {}).sparsity == 0.75
    assert weights.Counts(0, 0, {}).sparsity == 0.0


@pytest.mark.parametrize("length", range(1, 120, 5))
def test_genuine_files_of_every_header_length_are_read(length: int, tmp_path: Path) -> None:
    """A header of 128 (or 384, ...) bytes makes the file begin with 0x80, as a pickle does."""
    save_file({"x" * length: torch.ones(3)}, tmp_path / "a.safetensors")
    assert weights.read(tmp_path / "a.safetensors")["x" * length].sum() == 3


def test_a_genuine_file_that_begins_like_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for length in range(1, 200):
        save_file({"x" * length: torch.ones(3)}, path)
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert weights.header(path)


def test_the_same_values_give_the_same_bytes(tmp_path: Path) -> None:
    x, y = torch.randn(3, 4), torch.randn(2)
    weights.write(tmp_path / "a", {"x": x, "y": y})
    weights.write(tmp_path / "b", {"y": y, "x": x.T.contiguous().T})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_shared_memory_is_written_for_each_name(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    weights.write(tmp_path / "a", {"x": x, "y": x, "row": x[0]})
    assert weights.read(tmp_path / "a").keys() == {"x", "y", "row"}


def _bytes(folder: Path) -> bytes:
    save_file({"w": torch.ones(4, 4), "b": torch.ones(4)}, folder / weights.SINGLE)
    return (folder / weights.SINGLE).read_bytes()


def _framed(table: str) -> bytes:
    return len(table).to_bytes(8, "little") + table.encode() + b"\0" * 64


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda raw: raw[:-1], "truncated: "),
    "header cut": (lambda raw: raw[:40], "truncated"),
    "seven bytes": (lambda raw: raw[:7], "truncated (7 bytes)"),
    "empty": (lambda raw: b"", "truncated (0 bytes)"),
    "text": (lambda raw: b"hello, this is no model" * 9, "not a safetensors file"),
    "pickle": (lambda raw: pickle.dumps({"w": [1.0] * 100}), "this is a pickle"),
    "old pickle": (lambda raw: pickle.dumps({"w": [1.0] * 100}, protocol=2), "this is a pickle"),
    "zip": (lambda raw: b"PK\x03\x04" + b"\0" * 200, "this is a pickle"),
    "short pickle": (lambda raw: pickle.dumps(None), "this is a pickle"),
    "enormous header": (lambda raw: (1 << 62).to_bytes(8, "little") + raw[8:], "not a safetensors file"),
    "header not JSON": (lambda raw: _framed("{w:1}"), "damaged safetensors header"),
    "header not text": (lambda raw: raw[:9] + b"\xff\xfe" + raw[11:], "damaged safetensors header"),
    "header a list": (lambda raw: _framed("[1]"), "not a safetensors file"),
    "entry a number": (lambda raw: _framed('{"w": 1}'), "damaged safetensors header"),
    "no dtype": (lambda raw: _framed('{"w": {"data_offsets": [0, 4]}}'), "damaged safetensors header"),
    "no shape": (lambda raw: _framed('{"w": {"dtype": "F32", "data_offsets": [0, 4]}}'), "damaged"),
    "one offset": (lambda raw: _framed('{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}'), "damaged"),
    "backward": (lambda raw: _framed('{"w": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}'), "damaged"),
    "offset text": (lambda raw: _framed('{"w": {"dtype": "F32", "shape": [1], "data_offsets": "ab"}}'), "damaged"),
    "deep": (lambda raw: _framed('{"w":' + "[" * 99_999), "damaged safetensors header"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("use", [weights.read, weights.header, lambda p: weights.count(p.parent)])
def test_damage_is_named(damage: str, use: Callable[[Path], object], tmp_path: Path) -> None:
    change, message = DAMAGES[damage]
    raw = change(_bytes(tmp_path))
    path = tmp_path / weights.SINGLE
    path.write_bytes(raw)
    with pytest.raises(ArtifactError) as error:
        use(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 600


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 200), value=st.integers(0, 255))
def test_any_flipped_byte_is_read_or_refused_cleanly(place: int, value: int, tmp_path: Path) -> None:
    raw = bytearray(_bytes(tmp_path))
    raw[place % len(raw)] = value
    (tmp_path / weights.SINGLE).write_bytes(raw)
    with contextlib.suppress(ArtifactError):  # anything else fails the test
        weights.check(tmp_path, weights.FLOATING | weights.QUANTISED)
        weights.count(tmp_path)


def test_a_torch_archive_in_disguise(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / weights.SINGLE)
    assert zipfile.is_zipfile(tmp_path / weights.SINGLE)
    with pytest.raises(ArtifactError, match="this is a pickle"):
        weights.check(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "a.pth", "b.ckpt", "c.pkl"])
def test_pickled_weights_are_named_and_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(1))
    with pytest.raises(ArtifactError, match=f"'{name}' are pickled and are not opened"):
        weights.files(tmp_path)


def test_no_weights_at_all(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ArtifactError, match=r"no model\.safetensors"):
            weights.files(folder)


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.int64, "I64")]
)
def test_matrices_of_another_number_format_are_refused(dtype: torch.dtype, name: str, tmp_path: Path) -> None:
    save_file(
        {"w": torch.ones(2, 2).to(dtype), "steps": torch.ones(2).to(torch.int64)}, tmp_path / weights.SINGLE
    )
    with pytest.raises(ArtifactError, match=f"tensor 'w' is {name}, not one of BF16, F16, F32, F64"):
        weights.check(tmp_path)
    weights.check(tmp_path, {name})


def _shards(folder: Path) -> dict[str, str]:
    save_file({"a": torch.ones(2, 2)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": torch.tensor([0.0, 2.0])}, folder / "model-00002-of-00002.safetensors")
    return {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


def _index(folder: Path, content: object) -> None:
    (folder / weights.INDEX).write_text(content if isinstance(content, str) else json.dumps(content))


def test_shards(tmp_path: Path) -> None:
    _index(tmp_path, {"weight_map": _shards(tmp_path)})
    assert [p.name for p in weights.files(tmp_path)] == sorted(_shards(tmp_path).values())
    weights.check(tmp_path)
    assert [name for name, _ in weights.tensors(tmp_path)] == ["a", "b"]
    assert weights.count(tmp_path) == weights.Counts(6, 5, {"a": (4, 4)})


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../../etc/passwd"}}, "'../../etc/passwd' lies outside"),
        ({"weight_map": {"a": "/etc/passwd"}}, "'/etc/passwd' lies outside"),
        ({"weight_map": {"a": "sub/x.safetensors"}}, "lies outside"),
        ({"weight_map": {"a": 5}}, "shard 5 lies outside"),
        ({"weight_map": {"a": "none.safetensors"}}, "shard 'none.safetensors' is missing"),
        ({"weight_map": {"a": ".."}}, "missing"),
        ({"weight_map": {"a": [], "b": "x"}}, "not a safetensors index"),
        ({"weights": {}}, "not a safetensors index"),
        ([], "not a safetensors index"),
        ("{", "not a safetensors index"),
    ],
)  # fmt: skip
def test_bad_index(index: object, message: str, tmp_path: Path) -> None:
    _index(tmp_path, index)
    with pytest.raises(ArtifactError) as error:
        weights.files(tmp_path)
    assert message in str(error.value)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        weights.write(tmp_path / "a", {"x": 5})  # type: ignore[dict-item]
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="No such file"):
        weights.write(tmp_path / "none" / "a", {"x": torch.ones(2)})


def test_old_weights_survive_a_failed_write(tmp_path: Path) -> None:
    weights.write(tmp_path / "a", {"x": torch.ones(2)})
    with pytest.raises(AttributeError):
        weights.write(tmp_path / "a", {"y": None})  # type: ignore[dict-item]
    assert weights.read(tmp_path / "a").keys() == {"x"}
