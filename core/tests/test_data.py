"""Data references: what they read, what they refuse, and what their fingerprints depend on."""

from __future__ import annotations

import gzip
import lzma
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from planish import Tensors, Text
from planish.errors import DataError


class TestText:
    def test_documents(self) -> None:
        text = "one <s> two\n<s>  <s>three <s>"
        assert Text(text=text, separator="<s>").read() == ["one", "two", "three"]
        assert Text(text=text, separator="<s>", documents="1:").read() == ["two", "three"]
        assert Text(text=text, separator="<s>", documents=":-1").read() == ["one", "two"]
        assert Text(text=text).read() == [text.strip()]

    @pytest.mark.parametrize(("suffix", "opener"), [("", open), (".gz", gzip.open), (".xz", lzma.open)])
    def test_files(self, suffix: str, opener: Any, tmp_path: Path) -> None:
        path = tmp_path / f"text{suffix}"
        with opener(path, "wt", encoding="utf-8") as stream:
            stream.write("smörgås")
        assert Text(path=path).read() == ["smörgås"]
        assert Text(path=path).fingerprint() == Text(text="smörgås").fingerprint()

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("latin", "smörgås".encode("latin-1")),
            ("a.gz", b"no gzip"),
            ("cut.gz", gzip.compress(b"abc" * 1000, mtime=0)[:-9]),
            ("damaged.gz", gzip.compress(bytes(range(256)) * 40, mtime=0)[:20] + b"\xff" * 60),
            ("a.xz", b"no xz"),
            ("cut.xz", lzma.compress(b"abc" * 1000)[:-9]),
        ],
    )
    def test_damaged_files(self, name: str, content: bytes, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            Text(path=tmp_path / name).read()

    def test_missing_file_folder_and_empty_text(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "none"):
            with pytest.raises(DataError, match=str(path)):
                Text(path=path).read()
        with pytest.raises(DataError, match="no document in '5:' of 2"):
            Text(text="a|b", separator="|", documents="5:").read()
        with pytest.raises(DataError, match="no document in 'it' of 0"):
            Text(text=" \n ").read()

    @pytest.mark.parametrize(
        "options",
        [{}, {"path": "a", "text": "b"}, {"text": "a", "documents": "3"}, {"text": "a", "documents": "a:b"}],
    )
    def test_options_that_do_not_fit(self, options: dict[str, str]) -> None:
        with pytest.raises(ValidationError):
            Text(**options)  # type: ignore[arg-type]

    @given(st.lists(st.text("ab \n", max_size=6), max_size=6), st.integers(-3, 7), st.integers(-3, 7))
    @settings(deadline=None)
    def test_the_fingerprint_is_that_of_what_is_read(self, parts: list[str], first: int, last: int) -> None:
        text = Text(text="|".join(parts), separator="|", documents=f"{first}:{last}")
        wanted = [p.strip() for p in parts if p.strip()][first:last]
        if not wanted:
            with pytest.raises(DataError):
                text.fingerprint()
            return
        assert text.read() == wanted
        same = Text(text="||".join(wanted), separator="|")
        assert same.fingerprint() == text.fingerprint()
        assert Text(text="|".join([*wanted, "c"]), separator="|").fingerprint() != text.fingerprint()


class TestTensors:
    def test_file_and_memory_are_the_same_data(self, tmp_path: Path) -> None:
        values = {"x": np.arange(6.0).reshape(2, 3), "y": np.array([True, False])}
        np.savez(tmp_path / "a.npz", **values)
        stored = Tensors(path=tmp_path / "a.npz")
        assert stored.read("y", "x")[1].equal(torch.arange(6.0, dtype=torch.float64).view(2, 3))
        assert stored.fingerprint() == Tensors(values=values).fingerprint()
        assert (
            stored.fingerprint()
            == Tensors(values={k: torch.from_numpy(v) for k, v in values.items()}).fingerprint()
        )

    def test_fingerprints_depend_on_names_shapes_formats_and_values(self) -> None:
        x = torch.arange(4.0)
        variants = [
            {"x": x},
            {"y": x},
            {"x": x.view(2, 2)},
            {"x": x.double()},
            {"x": x.int()},
            {"x": x + torch.tensor([0, 0, 0, 1e-6])},
            {"x": x, "y": x[:0]},
            {"x": x, "y": x[:0].int()},
        ]
        assert len({Tensors(values=v).fingerprint() for v in variants}) == len(variants)

    @pytest.mark.parametrize(
        "tensor",
        [
            torch.ones(3, dtype=torch.bfloat16),
            torch.ones(3, requires_grad=True),
            torch.ones(4, 3).T,
            torch.tensor(5),
            torch.tensor([True]),
            torch.ones(2, dtype=torch.complex64),
        ],
    )
    def test_fingerprints_of_every_kind_of_tensor(self, tensor: torch.Tensor) -> None:
        assert (
            Tensors(values={"x": tensor}).fingerprint()
            == Tensors(values={"x": tensor.detach().clone()}).fingerprint()
        )

    def test_missing_names_and_files(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no array 'z' \(has: x, y\)"):
            Tensors(values={"y": 1, "x": 2}).read("z")
        with pytest.raises(DataError, match=r"none\.npz"):
            Tensors(path=tmp_path / "none.npz").fingerprint()

    @pytest.mark.parametrize("value", ["abc", [[1, 2], [3]], {1: 2}, np.array(["a", "b"]), None])
    def test_what_is_no_array_of_numbers(self, value: Any, tmp_path: Path) -> None:
        for call in (lambda data: data.read("x"), Tensors.fingerprint):
            with pytest.raises(DataError, match=r"data in memory: 'x' is no array of numbers \(") as error:
                call(Tensors(values={"x": value}))
            assert "\n" not in str(error.value)
        np.savez(tmp_path / "a.npz", x=np.array(["a", "b"]))
        with pytest.raises(DataError, match=r"a.npz: 'x' is no array of numbers"):
            Tensors(path=tmp_path / "a.npz").read("x")

    def test_one_origin(self) -> None:
        for options in ({}, {"path": "a", "values": {}}):
            with pytest.raises(ValidationError):
                Tensors(**options)  # type: ignore[arg-type]

    def test_pickles_are_refused(self, tmp_path: Path) -> None:
        mark = tmp_path / "ran"

        class Evil:
            def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
                return open, (str(mark), "w")

        np.savez(tmp_path / "a.npz", x=np.array([Evil()], dtype=object))
        (tmp_path / "b.npz").write_bytes(pickle.dumps(Evil()))
        for name in ("a.npz", "b.npz"):
            with pytest.raises(DataError, match=name) as error:
                Tensors(path=tmp_path / name).read("x")
            assert "pickle" in str(error.value).lower()
        assert not mark.exists()

    @pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty", "npy", "folder"])
    def test_damaged_files(self, damage: str, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        np.savez_compressed(path, x=np.arange(5000) % 17)
        raw = path.read_bytes()
        if damage == "npy":
            np.save(tmp_path / "a.npy", np.ones(3))
            (tmp_path / "a.npy").rename(path)
        elif damage == "folder":
            path.unlink()
            path.mkdir()
        else:
            half = len(raw) // 2
            changed = {
                "cut": raw[:half],
                "flipped": raw[:half] + b"\xff" * 20 + raw[half + 20 :],
                "text": b"x,y",
                "empty": b"",
            }
            path.write_bytes(changed[damage])
        with pytest.raises(DataError, match=r"a\.npz"):
            Tensors(path=path).read("x")
