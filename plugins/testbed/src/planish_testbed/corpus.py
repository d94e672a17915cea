"""The text that every CPython carries: the help topics of pydoc and the docstrings of the standard library.

The text is read from the source files of the running interpreter with `ast`; no module of it is imported or executed.
A document is one help topic or one module (its docstrings in source order). A paragraph, compared with its white space
collapsed, is kept once in the whole corpus, and held-out text is collected first: no paragraph of the held-out text
remains in the training text. The held-out split is fixed by name, so it is the same on every CPython from 3.11 to 3.13
as far as their texts agree.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

Split = Literal["train", "heldout"]

HELDOUT_TOPICS = frozenset(
    {
        "assert",
        "context-managers",
        "global",
        "import",
        "integers",
        "lambda",
        "raise",
        "slicings",
        "try",
        "while",
        "with",
    }
)
HELDOUT_MODULES = frozenset(
    {
        "asyncio.locks",
        "bisect",
        "configparser",
        "fractions",
        "gzip",
        "heapq",
        "http.cookies",
        "json",
        "json.decoder",
        "json.encoder",
        "queue",
        "sched",
        "shelve",
        "shlex",
        "tempfile",
        "textwrap",
        "zipapp",
    }
)

_SKIPPED_FOLDERS = frozenset({"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages"})


@dataclass(frozen=True, slots=True)
class Document:
    """One help topic (`topic:NAME`) or the docstrings of one module (`module:NAME`)."""

    name: str
    text: str


def train_documents() -> tuple[Document, ...]:
    """Training documents, in a fixed order: topics by name, then modules by name."""
    return _splits()["train"]


def heldout_documents() -> tuple[Document, ...]:
    """Held-out documents, in the same order; about 5 % of the bytes of the corpus."""
    return _splits()["heldout"]


def train_text() -> str:
    """The training documents as one string, a blank line between two of them."""
    return "\n\n".join(document.text for document in train_documents())


def heldout_text() -> str:
    """The held-out documents as one string, a blank line between two of them."""
    return "\n\n".join(document.text for document in heldout_documents())


def paragraphs(text: str) -> Iterator[tuple[str, str]]:
    """Yield (paragraph, key): what stands between blank lines, and that with its white space collapsed."""
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.strip():
            lines.append(line.rstrip())
        elif lines:
            paragraph = "\n".join(lines)
            yield paragraph, " ".join(paragraph.split())
            lines = []


@cache
def fingerprint() -> str:
    """SHA-256 over split, name and text of every document; it differs between versions of CPython."""
    digest = hashlib.sha256()
    for split in ("train", "heldout"):
        for document in _splits()[split]:
            for part in (split, document.name, document.text):
                digest.update(part.encode())
                digest.update(b"\0")
    return digest.hexdigest()


@cache
def _splits() -> dict[Split, tuple[Document, ...]]:
    sources = [*_topics(), *_modules()]
    seen: set[str] = set()
    heldout = _unique(((name, text) for name, text in sources if _is_heldout(name)), seen)
    train = _unique(((name, text) for name, text in sources if not _is_heldout(name)), seen)
    return {"train": train, "heldout": heldout}


def _is_heldout(name: str) -> bool:
    kind, _, rest = name.partition(":")
    return rest in (HELDOUT_TOPICS if kind == "topic" else HELDOUT_MODULES)


def _unique(sources: Iterator[tuple[str, str]], seen: set[str]) -> tuple[Document, ...]:
    documents = []
    for name, text in sources:
        kept = []
        for paragraph, key in paragraphs(text):
            if key not in seen:
                seen.add(key)
                kept.append(paragraph)
        if kept:
            documents.append(Document(name, "\n\n".join(kept)))
    return tuple(documents)


def _stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _topics() -> Iterator[tuple[str, str]]:
    tree = ast.parse((_stdlib() / "pydoc_data" / "topics.py").read_bytes())
    table = next(node.value for node in tree.body if isinstance(node, ast.Assign))
    for name, text in sorted(ast.literal_eval(table).items()):
        yield f"topic:{name}", text


def _modules() -> Iterator[tuple[str, str]]:
    for name, path in sorted(_module_files(_stdlib(), ())):
        texts = list(_docstrings(path))
        if texts:
            yield f"module:{name}", "\n\n".join(texts)


def _module_files(folder: Path, package: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    for path in folder.iterdir():
        if path.is_dir():
            if path.name.isidentifier() and path.name not in _SKIPPED_FOLDERS:
                yield from _module_files(path, (*package, path.name))
        elif path.suffix == ".py":
            parts = package if path.stem == "__init__" else (*package, path.stem)
            yield ".".join(parts), path


def _docstrings(path: Path) -> Iterator[str]:
    pending: list[ast.AST] = [ast.parse(path.read_bytes())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                # A lone surrogate (possible in an escape) has no UTF-8 form.
                yield text.encode("utf-8", "replace").decode()
        # Expressions, most of the tree, define nothing that has a docstring.
        pending.extend(
            reversed([child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)])
        )
