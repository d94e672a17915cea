"""Models of the transformers library: plain folders, surgery that their config cannot express, hostile folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from planish import Artifact, TorchModel, weights
from planish.builders.transformers import (
    TransformersBuilder,
    compute_dtype,
    describe,
    load_tokenizer,
    model_class,
    storage_dtype,
)
from planish.errors import ArtifactError
from planish.source import describe_folder, open_source

pytestmark = pytest.mark.model
IDS = torch.arange(12).view(2, 6)


def save(model: TorchModel, folder: Path) -> Artifact:
    root = folder / "model"
    root.mkdir(parents=True)
    artifact = Artifact.of(root, "torch", "transformers", TransformersBuilder().save(model, root))
    artifact.write(folder)
    return artifact


@pytest.mark.parametrize("tied", [True, False])
def test_a_plain_folder_is_an_artifact_in_place(
    tied: bool, llama_folders: dict[bool, Path], make_llama: Any
) -> None:
    folder = llama_folders[tied]
    before = sorted(p.name for p in folder.iterdir())
    source = open_source(str(folder))
    module = make_llama(tied)
    assert source.artifact is not None
    torch.testing.assert_close(
        source.artifact.load()({"input_ids": IDS}), module(IDS).logits, rtol=1e-5, atol=1e-5
    )
    counts = source.artifact.count()
    assert counts.parameters == sum(p.numel() for p in module.parameters())
    assert counts.nonzeros == sum(int(p.count_nonzero()) for p in module.parameters())
    assert sorted(p.name for p in folder.iterdir()) == before


@pytest.mark.parametrize("tied", [True, False])
def test_load_and_save_give_the_same_digest(
    tied: bool, llama_folders: dict[bool, Path], tmp_path: Path
) -> None:
    one = save(describe_folder(llama_folders[tied]).load(), tmp_path / "one")
    two = save(one.load(), tmp_path / "two")
    moved = save(
        describe_folder(Path(shutil.copytree(one.root, tmp_path / "three"))).load(), tmp_path / "four"
    )
    assert one.digest == two.digest == moved.digest
    assert one.load().tokenizer("even")["input_ids"] == two.load().tokenizer("even")["input_ids"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_the_number_format_is_kept(dtype: str, make_llama: Any, tmp_path: Path) -> None:
    module = make_llama().to(getattr(torch, dtype))
    expected = module.state_dict()["model.layers.0.mlp.up_proj.weight"].clone()
    module.save_pretrained(tmp_path / "plain")
    artifact = describe_folder(tmp_path / "plain")
    model = artifact.load()
    assert model.storage == dtype
    assert next(model.module.parameters()).dtype == compute_dtype(dtype, "cpu")
    again = save(model, tmp_path / "again")
    assert storage_dtype(again.root) == dtype
    stored = weights.read(again.root / weights.SINGLE)["model.layers.0.mlp.up_proj.weight"]
    torch.testing.assert_close(stored, expected, rtol=0, atol=0)
    assert again.load().module.get_parameter("model.layers.0.mlp.up_proj.weight").equal(expected.to(stored.dtype).to(
        compute_dtype(dtype, "cpu")
    ))  # fmt: skip


def test_compute_dtype() -> None:
    assert compute_dtype("bfloat16", "cpu") == torch.float32
    assert compute_dtype("float64", "cpu") == torch.float64
    assert compute_dtype("bfloat16", "cuda:0") == torch.bfloat16


def test_shards(make_llama: Any, tokenizer: Any, tmp_path: Path, llama_folders: dict[bool, Path]) -> None:
    make_llama().save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    sharded, whole = describe_folder(tmp_path / "sharded"), describe_folder(llama_folders[True])
    assert sharded.count() == whole.count()
    assert sharded.load()({"input_ids": IDS}).equal(whole.load()({"input_ids": IDS}))
    next((tmp_path / "sharded").glob("*00002*")).unlink()
    with pytest.raises(ArtifactError, match=r"00002-of-0000\d.safetensors' is missing"):
        describe_folder(tmp_path / "sharded")


def test_other_weight_files_are_no_part_of_the_model(llama_folder: Path) -> None:
    """Some hubs ship the same weights twice, in another layout; the size is that of what is loaded."""
    before = describe_folder(llama_folder)
    shutil.copy(llama_folder / "model.safetensors", llama_folder / "consolidated.safetensors")
    (llama_folder / "README.md").write_text("hello")
    assert describe_folder(llama_folder).files == before.files


def narrow(mlp: nn.Module, width: int) -> None:
    """Keep the first ``width`` inner channels, as structured pruning does."""
    for name in ("gate_proj", "up_proj", "down_proj"):
        layer = getattr(mlp, name)
        kept = layer.weight[:, :width] if name == "down_proj" else layer.weight[:width]
        layer.weight = nn.Parameter(kept.detach().clone())
        layer.out_features, layer.in_features = kept.shape


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_llama_with_blocks_of_different_widths(
    tied: bool, dtype: torch.dtype, make_llama: Any, tokenizer: Any, tmp_path: Path
) -> None:
    module = make_llama(tied)
    storage = str(dtype).removeprefix("torch.")
    model = TorchModel(module, "transformers", tokenizer, storage)
    narrow(module.model.layers[0].mlp, 20)
    narrow(module.model.layers[1].mlp, 33)
    model.patch(
        {"model.layers.0.mlp": {"intermediate_size": 20}, "model.layers.1.mlp": {"intermediate_size": 33}}
    )
    artifact = save(model, tmp_path / "a")
    again = Artifact.open(tmp_path / "a").load()
    torch.testing.assert_close(again({"input_ids": IDS}), model({"input_ids": IDS}), rtol=1e-5, atol=1e-5)
    assert again.module.model.layers[1].mlp.intermediate_size == 33
    assert again.module.model.layers[1].mlp.down_proj.in_features == 33
    assert (again.module.lm_head.weight is again.module.model.embed_tokens.weight) == tied
    assert artifact.count().parameters == sum(p.numel() for p in module.parameters())
    assert storage_dtype(artifact.root) == storage
    assert save(again, tmp_path / "b").digest == artifact.digest
    assert artifact.load("meta").device == "meta"


def test_gpt2_with_fewer_heads(make_gpt2: Any, tmp_path: Path) -> None:
    """GPT-2's config cannot say that a block has fewer heads: the attributes are patched back."""
    module = make_gpt2()
    attention = module.transformer.h[0].attn
    width = 24  # three of four heads of 8 channels
    fused = attention.c_attn.weight.detach().view(32, 3, 32)[:, :, :width].reshape(32, 3 * width)
    attention.c_attn.weight = nn.Parameter(fused.clone())
    attention.c_attn.bias = nn.Parameter(
        attention.c_attn.bias.detach().view(3, 32)[:, :width].reshape(-1).clone()
    )
    attention.c_attn.nf = 3 * width
    attention.c_proj.weight = nn.Parameter(attention.c_proj.weight.detach()[:width].clone())
    attention.num_heads, attention.split_size = 3, width
    model = TorchModel(module, "transformers")
    model.patch(
        {
            "transformer.h.0.attn": {"num_heads": 3, "split_size": width},
            "transformer.h.0.attn.c_attn": {"nf": 72},
        }
    )
    artifact = save(model, tmp_path / "a")
    again = artifact.load()
    torch.testing.assert_close(again({"input_ids": IDS}), model({"input_ids": IDS}), rtol=1e-5, atol=1e-5)
    assert again.module.transformer.h[0].attn.num_heads == 3
    assert save(again, tmp_path / "b").digest == artifact.digest


def test_patches_name_integers_that_exist(make_llama: Any, tmp_path: Path) -> None:
    model = TorchModel(make_llama(), "transformers")
    model.patch({"model.layers.0.mlp": {"intermediate_size": 48}})
    artifact = save(model, tmp_path / "a")
    for patches, message in (
        ({"model.layers.0.mlp": {"forward": 3}}, "no integer attribute 'forward'"),
        ({"model.layers.0.mlp": {"intermediate_size": "x"}}, "no integer attribute 'intermediate_size'"),
        ({"model.layers.9.mlp": {"intermediate_size": 3}}, "no part 'model.layers.9.mlp'"),
    ):
        with pytest.raises(ArtifactError, match=message):
            TransformersBuilder().load(artifact.root, {**artifact.architecture, "patches": patches}, "cpu")


def test_a_second_surgery_leaves_the_first_artifact_as_it_was(make_llama: Any, tmp_path: Path) -> None:
    """The live model's patches grow; those of the artifacts it was saved to and loaded from are theirs."""
    model = TorchModel(make_llama(), "transformers")
    model.patch({"model.layers.0.mlp": {"intermediate_size": 48}})
    artifact = save(model, tmp_path / "first")
    first = artifact.digest
    model.patch({"model.layers.1.mlp": {"intermediate_size": 48}})
    artifact.load().patch({"model.layers.0.mlp": {"intermediate_size": 8}})
    artifact.verify()
    assert artifact.architecture["patches"] == {"model.layers.0.mlp": {"intermediate_size": 48}}
    assert artifact.digest == first


def test_patched_model_with_weights_missing_or_foreign(make_llama: Any, tmp_path: Path) -> None:
    model = TorchModel(make_llama(), "transformers")
    model.patch({"model.layers.0.mlp": {"intermediate_size": 48}})
    artifact = save(model, tmp_path / "a")
    path = artifact.root / weights.SINGLE
    state = weights.read(path)
    removed = state.pop("model.norm.weight")
    weights.write(path, state)
    with pytest.raises(ArtifactError, match=r"weights are missing: model\.norm\.weight"):
        artifact.load()
    weights.write(path, {**state, "model.norm.weight": removed, "no.such.part": removed})
    with pytest.raises(ArtifactError, match=r"LlamaForCausalLM has no part 'no\.such'"):
        artifact.load()


def test_missing_weights(llama_folder: Path) -> None:
    path = llama_folder / weights.SINGLE
    state = weights.read(path)
    del state["model.layers.1.mlp.up_proj.weight"]
    weights.write(path, state)
    with pytest.raises(ArtifactError, match=r"weights are missing: model\.layers\.1\.mlp\.up_proj\.weight"):
        describe_folder(llama_folder).load()


def test_weights_of_another_shape(llama_folder: Path) -> None:
    path = llama_folder / weights.SINGLE
    weights.write(path, {**weights.read(path), "model.norm.weight": torch.ones(5)})
    with pytest.raises(ArtifactError) as error:
        describe_folder(llama_folder).load()
    assert "\n" not in str(error.value)


def _config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "auto_map": (
        lambda f: _config(f, auto_map={"AutoModelForCausalLM": "evil.Model"}),
        "brings its own code (auto_map), which is not run",
    ),
    "auto_map inside": (
        lambda f: _config(f, text_config={"auto_map": {"AutoConfig": "evil.Config"}}),
        "brings its own code (auto_map), which is not run",
    ),
    "kernel": (
        lambda f: _config(f, _attn_implementation="org/kernel"),
        "_attn_implementation = 'org/kernel' names code on the hub, which is not run",
    ),
    "kernel inside": (
        lambda f: _config(f, vision_config={"_attn_implementation_internal": {"": "org/kernel@main:f"}}),
        "names code on the hub, which is not run",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config cut": (lambda f: (f / "config.json").write_text('{"a":'), "not a model config"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "not a model config"),
    "config deep": (lambda f: (f / "config.json").write_text("[" * 99_999), "not a model config"),
    "no class": (lambda f: _config(f, architectures=None), "'architectures' must name one class, found []"),
    "two classes": (lambda f: _config(f, architectures=["A", "B"]), "found ['A', 'B']"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "pickled": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "'pytorch_model.bin' are pickled",
    ),
    "disguised": (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04\x95" + b"\0" * 99), "a pickle"),
    "cut": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]), "truncated"),
    "integers": (
        lambda f: weights.write(f / "model.safetensors", {"w": torch.ones(2, 2, dtype=torch.int32)}),
        "tensor 'w' is I32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD_FOLDERS)
def test_bad_folders_are_refused_before_loading(fault: str, llama_folder: Path) -> None:
    damage, message = BAD_FOLDERS[fault]
    damage(llama_folder)
    with pytest.raises(ArtifactError) as error:
        open_source(str(llama_folder))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"auto_map": {}}, {"_attn_implementation": "org/kernel"}])
def test_artifacts_that_name_code_are_refused_as_well(change: dict[str, object], llama_folder: Path) -> None:
    artifact = describe_folder(llama_folder)
    _config(llama_folder, **change)
    for device in ("cpu", "meta"):
        with pytest.raises(ArtifactError, match="which is not run"):
            artifact.load(device)


@pytest.mark.parametrize(
    "name", ["Pipeline", "AutoModelForCausalLM", "__version__", "os", "LlamaConfig", "no.such", "Llama4Ever"]
)
def test_only_model_classes_of_the_library_are_made(name: str) -> None:
    with pytest.raises(ArtifactError, match="has no model class"):
        model_class(name)


def test_describe_reads_class_and_format(llama_folder: Path) -> None:
    assert describe(llama_folder) == {"class": "LlamaForCausalLM", "storage": "float32", "patches": {}}


class TestTokenizer:
    def test_none(self, llama_folder: Path) -> None:
        (llama_folder / "tokenizer.json").unlink()
        assert load_tokenizer(llama_folder) is None

    def test_damaged(self, llama_folder: Path) -> None:
        (llama_folder / "tokenizer.json").write_text('{"version": "1.0", "model": 5}')
        with pytest.raises(ArtifactError, match="the tokenizer does not load") as error:
            load_tokenizer(llama_folder)
        assert "\n" not in str(error.value)

    def test_its_own_code_is_neither_run_nor_asked_for(
        self, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mark = tmp_path / "ran"
        (llama_folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Evil: pass\n")
        path = llama_folder / "tokenizer_config.json"
        config = json.loads(path.read_text())
        config.update(tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
        path.write_text(json.dumps(config))
        monkeypatch.setattr("builtins.input", lambda *question: mark.touch() or "y")
        try:
            load_tokenizer(llama_folder)
        except ArtifactError as error:
            assert "\n" not in str(error)  # noqa: PT017 - refused or read without the code: both are safe
        assert not mark.exists()
