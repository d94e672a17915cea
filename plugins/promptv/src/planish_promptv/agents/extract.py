"""Verilog out of a reply, and advice out of a teacher's answer. Text is only ever parsed, never run."""

from __future__ import annotations

import json
import re
from typing import Any

from planish_promptv.models.protocol import Reply
from planish_promptv.types import Advice, Finding

TAGS = ("verilog", "systemverilog", "sv", "v")
_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+.-]*)[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_OPEN_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)
_QUIET = re.compile(r"//[^\n]*|/\*.*?(?:\*/|\Z)|(?<!\\)\"(?:\\.|[^\"\\\n])*\"", re.DOTALL)
_DECLARATION = re.compile(r"\b(?:macro)?module\s+(?:automatic\s+|static\s+)?(\w+)\s*(?:#|\(|;|import\b)")
_END = re.compile(r"\bendmodule\b")


class FormatError(Exception):
    """A reply that cannot be used; the text names the defect for the one repetition of the question."""


def extract(reply: Reply, top: str, header: str | None = None) -> str:
    """The source that holds ``module top``.

    Looked for in this order: a fenced block tagged as Verilog, any fenced block, the longest span from ``module`` to
    ``endmodule``. Where a header was given and the reply only continues it, the header is put in front.

    Raises:
        FormatError: the reply is empty, was cut, or does not hold the module.
    """
    if not reply.text.strip():
        raise FormatError("your reply was empty")
    if reply.finish_reason == "length":
        raise FormatError("your reply was cut off because it was too long")
    blocks: list[tuple[str, str]] = [(tag.lower(), body) for tag, body in _FENCE.findall(reply.text)]
    for body in [b for tag, b in blocks if tag in TAGS] + [b for _, b in blocks]:
        if _declares(body, top):
            return body.strip() + "\n"
    if _declares(span := _span(reply.text), top):
        return span
    if header is not None and (rest := _completion([*(b for _, b in blocks), reply.text])) is not None:
        return f"{header.rstrip()}\n{rest.rstrip()}\n"
    if len(_OPEN_FENCE.findall(reply.text)) % 2:
        raise FormatError("your reply ends inside a fenced block: it was cut off")
    if _declares(reply.text, top):
        raise FormatError(f"module {top} has no endmodule")
    raise FormatError(f"your reply holds no module named {top}")


def _blank(text: str) -> str:
    """``text`` with comments and strings blanked out, every other character at its place."""
    return _QUIET.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def _declares(text: str, top: str) -> bool:
    return (
        re.search(rf"\b(?:macro)?module\s+(?:automatic\s+|static\s+)?{re.escape(top)}\b", _blank(text))
        is not None
    )


def _span(text: str) -> str:
    """Every module of ``text`` with what stands between; of modules with one name the longest. Empty without any.

    In prose the word "module" may come before the code, so a module begins where a declaration does.
    """
    blank = _blank(text)
    pieces: dict[str, tuple[int, int]] = {}
    at = 0
    while start := _DECLARATION.search(blank, at):
        end = _END.search(blank, start.end())
        if end is None:
            break
        known = pieces.get(start[1])
        if known is None or end.end() - start.start() > known[1] - known[0]:
            pieces[start[1]] = (start.start(), end.end())
        at = end.end()
    return "\n\n".join(text[a:b] for a, b in sorted(pieces.values())) + "\n" if pieces else ""


def _completion(bodies: list[str]) -> str | None:
    """The first of ``bodies`` that continues a module whose header is not repeated, up to its ``endmodule``."""
    for body in bodies:
        blank = _blank(body)
        if not _DECLARATION.search(blank) and (end := _END.search(blank)):
            return body[: end.end()]
    return None


SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["verdict", "code_advice", "testbench_advice"],
    "properties": {
        "verdict": {"type": "string", "enum": ["code_wrong", "testbench_wrong", "both", "none"]},
        **{
            side: {
                "type": "array",
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["where", "problem", "fix"],
                    "properties": {name: {"type": "string"} for name in ("where", "problem", "fix")},
                },
            }
            for side in ("code_advice", "testbench_advice")
        },
    },
}
"""JSON schema of `Advice`, as endpoints with structured output want it."""

LONGEST_ADVICE = 20


def advice(reply: Reply) -> Advice:
    """Advice from a reply: the first balanced JSON object that is one, or the sections ``CODE:`` and ``TESTBENCH:``.

    Raises:
        FormatError: neither is there.
    """
    if not reply.text.strip():
        raise FormatError("your reply was empty")
    for value in _objects(reply.text):
        if any(name in value for name in ("verdict", "code_advice", "testbench_advice")):
            return _advice(
                _findings(value.get("code_advice")), _findings(value.get("testbench_advice")), reply.text
            )
    if sections := _sections(reply.text):
        return _advice(sections.get("CODE", ()), sections.get("TESTBENCH", ()), reply.text)
    if reply.finish_reason == "length":
        raise FormatError("your reply was cut off because it was too long")
    raise FormatError("your reply holds no JSON object of the form asked for")


def _advice(code: tuple[Finding, ...], bench: tuple[Finding, ...], raw: str) -> Advice:
    """The lists decide what is done, so the verdict is derived from them and cannot contradict them."""
    verdicts = {(True, True): "both", (True, False): "code_wrong", (False, True): "testbench_wrong"}
    verdict = verdicts.get((bool(code), bool(bench)), "none")
    return Advice(verdict=verdict, code_advice=code, testbench_advice=bench, raw=raw)  # type: ignore[arg-type]


def _objects(text: str) -> Any:
    """Every balanced JSON object in ``text``, outermost first."""
    decoder = json.JSONDecoder()
    at = text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
            if isinstance(value, dict):
                yield value
            at = text.find("{", end)
        except (ValueError, RecursionError):
            at = text.find("{", at + 1)


def _findings(value: Any) -> tuple[Finding, ...]:
    """A list of findings from what a model put there: objects, strings, or one of them alone."""
    if value is None:
        return ()
    items = value if isinstance(value, list) else [value]
    found = []
    for item in items[:LONGEST_ADVICE]:
        if isinstance(item, dict):
            parts = {name: str(item.get(name) or "").strip() for name in ("where", "problem", "fix")}
            if any(parts.values()):
                found.append(Finding(**parts))
        elif isinstance(item, str) and item.strip():
            found.append(Finding(problem=item.strip()))
    return tuple(found)


_HEADING = re.compile(r"^[#*\s]*(CODE|TESTBENCH)(?:\s+ADVICE)?[*\s]*:[*\s]*", re.MULTILINE)
_NOTHING = re.compile(
    r"(?i)\W*(?:none|nothing|no (?:errors?|problems?|issues?|advice|changes?)\b.*|ok|n/a|-)\W*"
)


def _sections(text: str) -> dict[str, tuple[Finding, ...]]:
    parts = _HEADING.split(text)
    found = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        lines = [re.sub(r"^\s*(?:[-*•]|\d+[.)])\s*", "", line).strip() for line in body.splitlines()]
        lines = [line for line in lines if line]
        nothing = len(lines) == 1 and _NOTHING.fullmatch(lines[0])
        found[name] = () if nothing else tuple(Finding(problem=line) for line in lines[:LONGEST_ADVICE])
    return found
