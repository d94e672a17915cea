from __future__ import annotations

import shutil

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planish.errors import ArtifactError
from planish_onnx import files
from planish_onnx.session import OnnxModel


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported("digits").folder, tmp_path / "copy")


def refused(folder, words):
    with pytest.raises(ArtifactError, match=words) as error:
        OnnxModel(folder)
    assert "\n" not in str(error.value)


def edit(folder, **entries):
    """Change the entry of the first tensor stored outside the graph."""
    model = onnx.load(folder / files.GRAPH, load_external_data=False)
    tensor = next(files.external_tensors(model))
    for entry in tensor.external_data:
        entry.value = entries.get(entry.key, entry.value)
    onnx.save(model, folder / files.GRAPH)


def test_lost_data_file(folder):
    (folder / files.DATA).unlink()
    refused(folder, "weights are missing, model.onnx needs model.onnx.data")


def test_lost_graph(folder):
    (folder / files.GRAPH).unlink()
    refused(folder, "no model.onnx")


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.floats(0, 1, exclude_max=True))
def test_truncated_data(folder, share):
    data = (folder / files.DATA).read_bytes()
    (folder / files.DATA).write_bytes(data[: int(share * len(data))])
    try:
        refused(folder, "truncated")
    finally:
        (folder / files.DATA).write_bytes(data)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\xff" * 100])
def test_damaged_graph(folder, content):
    (folder / files.GRAPH).write_bytes(content)
    refused(folder, "not a readable ONNX graph")


@pytest.mark.parametrize(
    "location", ["../secret", "a/../../secret", "/etc/hostname", "C:\\secret", "..\\secret", ""]
)
def test_data_outside_the_folder_is_refused(folder, location):
    (folder.parent / "secret").write_bytes((folder / files.DATA).read_bytes())
    edit(folder, location=location)
    refused(folder, "outside the folder")


def test_data_behind_a_link_is_refused(folder):
    (folder / files.DATA).rename(folder.parent / "secret")
    (folder / files.DATA).symlink_to(folder.parent / "secret")
    refused(folder, "outside the folder")


@pytest.mark.parametrize(
    "entries", [{"offset": "-4"}, {"length": "4"}, {"length": "many"}, {"offset": str(10**12)}]
)
def test_entries_that_do_not_fit_are_refused(folder, entries):
    edit(folder, **entries)
    refused(folder, "model.onnx")


def test_hostile_data_in_an_attribute_is_found(folder):
    model = onnx.load(folder / files.GRAPH, load_external_data=False)
    tensor = onnx.TensorProto(
        dims=[1], data_type=onnx.TensorProto.FLOAT, data_location=onnx.TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value="../secret")
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["spare"], value=tensor))
    onnx.save(model, folder / files.GRAPH)
    refused(folder, "outside the folder")


def test_a_failed_write_leaves_the_old_folder(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fill(scratch):
        (scratch / files.GRAPH).write_bytes(before[files.GRAPH])  # and no data beside it

    with pytest.raises(ArtifactError, match="missing"):
        files.write(folder, fill)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_stored_bytes_are_bytes_on_disk(folder):
    assert files.stored_bytes(folder) == sum(path.stat().st_size for path in folder.iterdir())
    assert (folder / files.DATA).stat().st_size > 0.9 * 4 * (64 * 128 + 640)
