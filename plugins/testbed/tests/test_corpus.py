from __future__ import annotations

import subprocess
import sys

import pytest

from planish_testbed import corpus


def test_no_heldout_paragraph_in_training_text() -> None:
    train = {key for _, key in corpus.paragraphs(corpus.train_text())}
    heldout = [key for _, key in corpus.paragraphs(corpus.heldout_text())]
    assert len(heldout) > 500
    assert train.isdisjoint(heldout)


def test_no_paragraph_twice() -> None:
    for text in (corpus.train_text(), corpus.heldout_text()):
        keys = [key for _, key in corpus.paragraphs(text)]
        assert len(keys) == len(set(keys))


def test_heldout_is_every_listed_name_and_no_other() -> None:
    names = {document.name for document in corpus.heldout_documents()}
    listed = {f"topic:{name}" for name in corpus.HELDOUT_TOPICS}
    listed |= {f"module:{name}" for name in corpus.HELDOUT_MODULES}
    assert names == listed
    assert not names & {document.name for document in corpus.train_documents()}


def test_heldout_share_covers_both_kinds() -> None:
    train, heldout = len(corpus.train_text().encode()), len(corpus.heldout_text().encode())
    assert 1_500_000 < train < 2_500_000
    assert 0.04 < heldout / (train + heldout) < 0.07
    for kind in ("topic:", "module:"):
        part = sum(len(d.text.encode()) for d in corpus.heldout_documents() if d.name.startswith(kind))
        assert part > heldout / 5


def test_skipped_folders_stay_out() -> None:
    names = [document.name for document in corpus.train_documents()]
    roots = {name.removeprefix("module:").split(".")[0] for name in names if name.startswith("module:")}
    assert {"typing", "logging", "email"} <= roots
    assert roots.isdisjoint({"test", "idlelib", "lib2to3", "site-packages", "numpy"})
    assert not any(".test." in name or name.endswith(".tests") for name in names)


def test_documents_are_whole_docstrings_of_the_source() -> None:
    import random

    text = {document.name: document.text for document in corpus.train_documents()}["module:random"]
    assert text.startswith((random.__doc__ or "").strip().splitlines()[0])
    assert "Choose a random element from a non-empty sequence." in text


def test_same_text_in_a_new_process_without_heavy_imports() -> None:
    program = (
        "import sys; from planish_testbed import corpus; print(corpus.fingerprint());"
        "print(sorted({'torch', 'numpy', 'transformers', 'tkinter', 'turtle'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[:2] == [corpus.fingerprint(), "[]"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n b \n\n\n c\td", [("a\n b", "a b"), (" c\td", "c d")]),
        ("\n\n  \n", []),
        ("one", [("one", "one")]),
    ],
)
def test_paragraphs(text: str, expected: list[tuple[str, str]]) -> None:
    assert list(corpus.paragraphs(text)) == expected
