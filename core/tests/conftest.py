"""Shared by the tests of core: a plugin found through real entry points, tiny models made in code, and the CLI."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from planish import registry

FAKE = Path(__file__).parent / "fake"
TEXT = (
    "The blows are light and even. The sheet gets thinner and keeps its shape, and nothing is torn. "
    "A smith planishes a bowl on a stake, turning it a little after every blow; the marks overlap. "
) * 12


def write_distribution(site: Path, name: str, version: str, entries: dict[str, str]) -> None:
    """Metadata of an installed distribution, as an installer leaves it in a site folder."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{entry} = {target}" for entry, target in entries.items()]
    (info / "entry_points.txt").write_text("[planish.plugins]\n" + "\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site folder in which the distribution planish-fake 1.2 is installed."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(FAKE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    write_distribution(folder, "planish-fake", "1.2", {"fake": "planish_fake"})
    return folder


@pytest.fixture(autouse=True)
def only_fake(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test sees core and planish-fake, whatever else is installed."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PLANISH_PLUGINS", "planish-fake")
    registry.host.cache_clear()
    yield
    registry.host.cache_clear()


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three timed rounds on one thread: here it matters that something was timed, not how exactly."""
    import torch

    from planish import compare, runner

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(runner, "compare", functools.partial(compare.compare, rounds=3))
    gc.freeze()  # the collection after each measurement passes over what is there by now
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Installs a one-module plugin from its source and lets the host load it."""
    folder = tmp_path / "site"

    def install(name: str, source: str, version: str = "1.0", entry: str = "", beside: str = "") -> str:
        """``beside``: name of an empty module beside the source, which then is a package's."""
        module = f"{name.replace('-', '_')}_{tmp_path.name}".replace("-", "_")
        folder.mkdir(exist_ok=True)
        path = folder / module / "__init__.py" if beside else folder / f"{module}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
        if beside:
            (path.parent / f"{beside}.py").touch()
        write_distribution(folder, name, version, {entry or name: module})
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PLANISH_PLUGINS", f"{os.environ['PLANISH_PLUGINS']},{name}")
        registry.host.cache_clear()
        return module

    return install


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs ``planish ARGUMENTS`` in this process, from the entry point on."""
    from planish.cli.app import main

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["planish", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        code = exit_.value.code
        return Outcome(code if isinstance(code, int) else int(code is not None), out, err)

    return call


@pytest.fixture(scope="session")
def fake_model(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of planish-fake's perceptron."""
    sys.path.insert(0, str(site))
    try:
        from planish_fake import models

        folder = tmp_path_factory.mktemp("model") / "mlp"
        models.write(folder)
        return folder
    finally:
        sys.path.remove(str(site))


@pytest.fixture
def fake_source(fake_model: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The source ``fake:mlp``: the perceptron with its task."""
    monkeypatch.setenv("FAKE_MODEL", str(fake_model))
    return "fake:mlp"


@pytest.fixture
def classifier() -> Any:
    """A module of the user's own, with a normalisation layer."""
    import torch
    from torch import nn

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 3)])
            self.norm = nn.BatchNorm1d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers[1](self.norm(self.layers[0](x)).relu())

    torch.manual_seed(0)
    return Own()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer of bytes, in the order of GPT-2's alphabet; 256 ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: number for number, sign in enumerate([*alphabet, "<end>"])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>").save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def tiny_llama(tied: bool = True, **changes: Any) -> Any:
    """A Llama with grouped queries: 2 layers, 4 heads that share 2 keys, 32 channels."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    options = {
        "vocab_size": 257,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": 256,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**options, **changes})).eval()


def tiny_gpt2() -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=257, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=256, eos_token_id=256
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="session")
def make_llama() -> Callable[..., Any]:
    return tiny_llama


@pytest.fixture(scope="session")
def make_gpt2() -> Callable[..., Any]:
    return tiny_gpt2


@pytest.fixture(scope="session")
def llama_folders(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Plain transformers folders of the tiny Llama, by whether its embeddings are tied."""
    folders = {}
    for tied in (True, False):
        folder = tmp_path_factory.mktemp("llama") / ("tied" if tied else "untied")
        tiny_llama(tied).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[tied] = folder
    return folders


@pytest.fixture
def llama_folder(llama_folders: dict[bool, Path], tmp_path: Path) -> Path:
    """A copy of the tied folder that the test may damage."""
    return Path(shutil.copytree(llama_folders[True], tmp_path / "llama"))


@pytest.fixture(scope="session")
def text() -> str:
    return TEXT
