"""What a run may start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from planish import Artifact, Source
from planish.errors import ArtifactError
from planish.source import open_source


def test_artifact_folder_and_plugin_scheme(fake_model: Path, fake_source: str) -> None:
    artifact = Artifact.open(fake_model)
    assert open_source(str(fake_model)).artifact == artifact
    assert open_source(fake_model).artifact == artifact
    assert open_source(artifact) == Source(str(artifact.root), artifact)
    source = open_source(fake_source)
    assert (source.uri, source.artifact) == ("fake:mlp", artifact)
    assert source.task is not None
    assert open_source(source) is source
    assert source.with_task(None) is source
    assert Source("x").with_task(source.task).task == source.task


@pytest.mark.parametrize(
    "uri", ["fake:other", "testbed:none", "./none", "/none/at/all", "~/none", "", "a/b/c", "x" * 300, "a\0b"]
)
def test_unknown_sources(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError) as error:
        open_source(uri)
    assert "\n" not in str(error.value)


def test_a_file_and_a_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ArtifactError, match="is a file; a model is a folder"):
        open_source(tmp_path / "model.bin")
    with pytest.raises(ArtifactError, match=r"no config.json; a model folder holds"):
        open_source(tmp_path)


@pytest.mark.parametrize("target", [None, 5, ["a"], object()])
def test_what_is_no_model(target: object) -> None:
    with pytest.raises(ArtifactError, match="neither a folder, a hub id, an artifact nor a torch module"):
        open_source(target)  # type: ignore[arg-type]


def test_hub_failures_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked: dict[str, object] = {}

    def gone(uri: str, allow_patterns: list[str]) -> str:
        asked.update(uri=uri, patterns=allow_patterns)
        raise ConnectionError("no route\nto the hub")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", gone)
    with pytest.raises(
        ArtifactError, match=r"'org/name': not a local folder, .* no model \(ConnectionError\)"
    ):
        open_source("org/name")
    assert asked["uri"] == "org/name"
    assert not any(
        p.endswith((".bin", ".py", ".pt", "*")) and p != "tokenizer*"
        for p in asked["patterns"]
        if p not in ("vocab.*", "chat_template*")
    )  # type: ignore[attr-defined]


def test_hub_needs_its_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ArtifactError, match="needs: pip install huggingface-hub"):
        open_source("org/name")


@pytest.mark.model
def test_hub_download_is_described(
    monkeypatch: pytest.MonkeyPatch, llama_folder: Path, tmp_path: Path
) -> None:
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda uri, allow_patterns: str(llama_folder))
    source = open_source("org/name")
    assert source.artifact is not None
    assert source.artifact.root == llama_folder
