"""Artifacts: digests that are stable and sensitive, and faults that are noticed when the folder is opened."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from planish import Artifact, TorchModel, digest
from planish.artifact import MANIFEST, write_json
from planish.builders.module import ModuleBuilder, storage_of
from planish.errors import ArtifactError, PlanishError
from planish.model import Model
from planish.weights import read


def layers() -> Any:
    from planish_fake.models import Layers

    torch.manual_seed(0)
    return Layers([3, 4, 2])


def artifact_of(module: nn.Module, folder: Path) -> Artifact:
    """A module as planish-fake's builder keeps it."""
    from planish_fake.models import LayersBuilder

    root = folder / "model"
    root.mkdir(parents=True, exist_ok=True)
    made = Artifact.of(
        root, "torch", "layers", LayersBuilder().save(TorchModel(module, "layers"), root), "parent"
    )
    made.write(folder)
    return made


def test_round_trip(tmp_path: Path) -> None:
    made = artifact_of(layers(), tmp_path / "a")
    assert Artifact.open(tmp_path / "a") == made
    assert made.parent == "parent"
    assert made.bytes == (tmp_path / "a/model/model.safetensors").stat().st_size
    model = made.load()
    assert isinstance(model, Model)
    batch = torch.randn(5, 3)
    torch.testing.assert_close(model({"x": batch}), layers()(batch), rtol=0, atol=0)
    assert made.load("meta").device == "meta"


def test_counts_are_those_of_the_module(tmp_path: Path) -> None:
    module = layers()
    module.layers[0].weight.data[0] = 0
    counts = artifact_of(module, tmp_path).count()
    assert counts.parameters == sum(p.numel() for p in module.parameters())
    assert counts.nonzeros == sum(int(p.count_nonzero()) for p in module.parameters())
    assert counts.layers == {"layers.0.weight": (12, 9), "layers.1.weight": (8, 8)}


def test_the_folder_s_place_and_the_parent_are_no_part_of_the_digest(tmp_path: Path) -> None:
    one, two = artifact_of(layers(), tmp_path / "a"), artifact_of(layers(), tmp_path / "b/c")
    assert one.digest == two.digest
    assert Artifact.of(one.root, "torch", "layers", one.architecture, "other").digest == one.digest


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layer=st.integers(0, 1), place=st.integers(0, 7), change=st.sampled_from([1e-7, -1.0, 3.5]))
def test_changing_one_weight_changes_the_digest(
    layer: int, place: int, change: float, tmp_path: Path
) -> None:
    module = layers()
    before = artifact_of(module, tmp_path / "a").digest
    module.layers[layer].weight.data.flatten()[place] += change
    assert artifact_of(module, tmp_path / "b").digest != before


def test_everything_in_the_description_changes_the_digest(tmp_path: Path) -> None:
    made = artifact_of(layers(), tmp_path)
    others = [
        Artifact.of(made.root, "onnx", "layers", made.architecture),
        Artifact.of(made.root, "torch", "module", made.architecture),
        Artifact.of(made.root, "torch", "layers", {"widths": [3, 4, 3]}),
        Artifact.of(made.root, "torch", "layers", made.architecture, names=[]),
    ]
    (made.root / "notes.txt").write_text("")
    others.append(Artifact.of(made.root, "torch", "layers", made.architecture))
    assert len({made.digest, *(o.digest for o in others)}) == 6


def test_folders_in_the_model_are_described(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c.txt").write_text("x")
    assert list(Artifact.of(tmp_path / "a", "rtl", "layers", {}).files) == ["b/c.txt"]


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def _manifest(path: Path, **changes: object) -> None:
    manifest = path.parent.parent / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (_flip, "altered since it was written"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes, "),
    "missing": (lambda p: p.unlink(), "missing"),
    "manifest missing": (lambda p: (p.parent.parent / MANIFEST).unlink(), "no artifact.json"),
    "manifest cut": (lambda p: (p.parent.parent / MANIFEST).write_text('{"format": 1'), "damaged"),
    "manifest a list": (lambda p: (p.parent.parent / MANIFEST).write_text("[]"), "damaged"),
    "manifest deep": (lambda p: (p.parent.parent / MANIFEST).write_text("[" * 99_999), "damaged"),
    "manifest empty": (lambda p: (p.parent.parent / MANIFEST).write_text("{}"), "damaged (KeyError: 'format')"),
    "other format": (lambda p: _manifest(p, format=2), "artifact format 2, this planish reads 1"),
    "other architecture": (lambda p: _manifest(p, architecture={"widths": [3, 9, 2]}), "altered since"),
    "other builder": (lambda p: _manifest(p, builder="module"), "altered since"),
    "other table": (lambda p: _manifest(p, files={}), "altered since"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_noticed_on_opening(fault: str, tmp_path: Path) -> None:
    made = artifact_of(layers(), tmp_path / "a")
    damage, message = FAULTS[fault]
    damage(made.root / "model.safetensors")
    with pytest.raises(ArtifactError) as error:
        Artifact.open(tmp_path / "a")
    assert message in str(error.value)
    assert str(tmp_path / "a") in str(error.value)


def test_unknown_builder(tmp_path: Path) -> None:
    made = dataclasses.replace(artifact_of(layers(), tmp_path), builder="snn")
    with pytest.raises(PlanishError, match=r"unknown builder 'snn' \(installed: layers, module, packed"):
        made.load()


def test_write_json_is_whole_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": [1, {2}]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_digests_of_parts_do_not_run_together() -> None:
    assert digest.of_bytes(b"ab", b"c") != digest.of_bytes(b"a", b"bc") != digest.of_bytes(b"abc")
    assert digest.of_json({"a": 1, "b": 2}) == digest.of_json({"b": 2, "a": 1})
    assert digest.of_json([1, 2]) != digest.of_json([2, 1])


def test_digest_of_a_file_longer_than_one_chunk(tmp_path: Path) -> None:
    import hashlib

    raw = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(raw)
    assert digest.of_file(tmp_path / "x") == hashlib.sha256(raw).hexdigest()


class TestOwnModule:
    """A user's own module: weights are kept, the module must be given again."""

    def save(self, module: nn.Module, folder: Path) -> dict[str, Any]:
        return ModuleBuilder().save(TorchModel(module, "module", storage=storage_of(module)), folder)

    def test_round_trip(self, classifier: Any, tmp_path: Path) -> None:
        architecture = self.save(classifier, tmp_path)
        other = type(classifier)()
        loaded = ModuleBuilder().load(tmp_path, architecture, "cpu", other)
        x = torch.randn(4, 6)
        torch.testing.assert_close(loaded({"x": x}), classifier.eval()(x), rtol=0, atol=0)
        assert loaded.module is not other
        assert not loaded.module.training

    def test_given_again_or_an_error(self, classifier: Any, tmp_path: Path) -> None:
        architecture = self.save(classifier, tmp_path)
        with pytest.raises(ArtifactError, match=r"\(Own\) was a module in memory .* give the module again"):
            ModuleBuilder().load(tmp_path, architecture, "cpu")

    def test_another_module(self, classifier: Any, tmp_path: Path) -> None:
        architecture = self.save(classifier, tmp_path)
        with pytest.raises(ArtifactError, match="is not the one that was saved") as error:
            ModuleBuilder().load(tmp_path, architecture, "cpu", nn.Linear(2, 2))
        assert "\n" not in str(error.value)

    def test_shapes_only(self, classifier: Any, tmp_path: Path) -> None:
        architecture = self.save(classifier, tmp_path)
        model = ModuleBuilder().load(tmp_path, architecture, "meta", classifier)
        assert model.device == "meta"
        assert next(classifier.parameters()).device.type == "cpu"

    def test_empty_tensors_and_counters_are_kept(self, tmp_path: Path) -> None:
        def make() -> nn.Module:
            module = nn.Linear(2, 2)
            module.register_buffer("nothing", torch.zeros(0, 3))
            module.register_buffer("steps", torch.tensor(7))
            return module

        module = make()
        loaded = ModuleBuilder().load(tmp_path, self.save(module, tmp_path), "cpu", make())
        assert loaded.module.steps == 7
        assert loaded.module.nothing.shape == (0, 3)

    @pytest.mark.parametrize("first", [torch.float16, torch.bfloat16, torch.float32])
    def test_mixed_formats_lose_nothing(self, first: torch.dtype, tmp_path: Path) -> None:
        """The number format of one part is not forced on the others, neither in the file nor in the module."""
        module = nn.Sequential(nn.Linear(2, 2).to(first), nn.Linear(2, 2).double())
        before = {name: t.clone() for name, t in module.state_dict().items()}
        self.save(module, tmp_path)
        for state in (module.state_dict(), read(tmp_path / "model.safetensors")):
            for name, tensor in before.items():
                assert state[name].dtype == tensor.dtype
                torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)

    def test_storage(self) -> None:
        assert storage_of(nn.Linear(2, 2).to(torch.bfloat16)) == "bfloat16"
        assert storage_of(nn.Sequential(nn.Linear(2, 2).half(), nn.Linear(2, 2).bfloat16())) == "float32"
        assert storage_of(nn.ReLU()) == "float32"


def test_a_live_model_equals_the_saved_one(tmp_path: Path) -> None:
    """What computes in float32 and is kept in bfloat16 is rounded in memory as well."""
    module = layers()
    model = TorchModel(module, "module", storage="bfloat16")
    model.settle()
    for tensor in module.parameters():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor.bfloat16().float(), tensor, rtol=0, atol=0)


def test_torch_model_describes_itself() -> None:
    model = TorchModel(layers(), "layers")
    assert model.runtime == "torch eager, cpu, float32"
    assert TorchModel(nn.ReLU(), "module").runtime == "torch eager, cpu, no weights"
    model.patch({"a": {"heads": 2}})
    model.patch({"a": {"width": 3}, "b": {"heads": 1}})
    assert model.patches == {"a": {"heads": 2, "width": 3}, "b": {"heads": 1}}


def test_outputs_of_every_form_give_logits() -> None:
    class Form(nn.Module):
        def __init__(self, form: Callable[[Any], Any]) -> None:
            super().__init__()
            self.form = form

        def forward(self, x: torch.Tensor) -> Any:
            return self.form(x)

    class Output:
        def __init__(self, logits: torch.Tensor) -> None:
            self.logits = logits

    x = torch.ones(2, 3)
    for form in (lambda x: x, lambda x: (x, None), Output):
        assert TorchModel(Form(form), "module")({"x": x}).equal(x)


def test_a_copied_artifact_opens(tmp_path: Path) -> None:
    made = artifact_of(layers(), tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "elsewhere")
    assert Artifact.open(tmp_path / "elsewhere").digest == made.digest


def test_tied_weights_of_a_module_are_stored_and_counted_once(tmp_path: Path) -> None:

    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(7, 3)
            self.head = torch.nn.Linear(3, 7, bias=False)
            self.head.weight = self.table.weight

    module = Tied()
    builder = ModuleBuilder()
    architecture = builder.save(TorchModel(module, "module"), tmp_path)
    assert builder.count(tmp_path, architecture).parameters == 21
    torch.manual_seed(1)
    reopened = builder.load(tmp_path, architecture, "cpu", Tied()).module
    assert torch.equal(reopened.table.weight, module.table.weight)
    assert reopened.head.weight is reopened.table.weight
