"""Icarus Verilog's messages: parsed, classed, and cleaned of whatever belongs to the host."""

from __future__ import annotations

import re
from collections.abc import Iterable

from planish_promptv.types import Diagnostic, Status

FLAGS = ("-g2012", "-Wall", "-Winfloop", "-Wno-timescale")
_LINE = re.compile(r"^(?P<file>[\w.+-]+):(?P<line>\d+): *(?P<rest>.*)$")
_PATH = re.compile(r"(?<![\w`$.])/(?:[\w.+@-]+/)+([\w.+@-]*)")
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
_MOST = 40


def clean(text: str) -> str:
    """``text`` without control characters and absolute paths; the last part of a path stays."""
    return _PATH.sub(r"\1", _CONTROL.sub("", text.replace("\r\n", "\n")))


def diagnostics(text: str) -> list[Diagnostic]:
    """Messages of iverilog, vvp or verilator in order of appearance, at most 40; errors are kept before warnings."""
    found: list[Diagnostic] = []
    for line in text.splitlines():
        message = _verilator(line) or _icarus(line)
        if message and message not in found:
            found.append(message)
    if len(found) > _MOST:
        order = {id(d): i for i, d in enumerate(found)}
        kept = sorted(found, key=lambda d: d.severity != "error")[:_MOST]
        found = sorted(kept, key=lambda d: order[id(d)])
    return found


def _icarus(line: str) -> Diagnostic | None:
    match = _LINE.match(line)
    if not match:
        return None
    rest = match["rest"].strip()
    severity, code = "error", "error"
    lowered = rest.lower()
    if lowered.startswith("warning:"):
        severity, code, rest = "warning", "warning", rest[8:].strip()
    elif lowered.startswith("sorry:"):
        code, rest = "sorry", rest[6:].strip()
    elif lowered.startswith("syntax error"):
        code = "syntax"
    elif lowered.startswith(("error:", "internal error:", "assertion failed:")):
        code, rest = "error", rest.partition(":")[2].strip()
        if "malformed" in rest.lower() or "invalid module item" in rest.lower():
            code = "syntax"
    elif rest.startswith(":") or not rest:
        severity, code, rest = "info", "note", rest.lstrip(": ")
    elif "$finish called" in rest or "$stop called" in rest:
        return None  # Icarus 12 and later say so after every run
    return Diagnostic(file=match["file"], line=int(match["line"]), severity=severity, code=code, message=rest)  # type: ignore[arg-type]


_VERILATOR = re.compile(
    r"^%(?P<kind>Error|Warning)(?:-(?P<code>\w+))?: (?:(?P<file>[\w.+-]+):(?P<line>\d+):\d+: )?(?P<text>.*)"
)


def _verilator(line: str) -> Diagnostic | None:
    match = _VERILATOR.match(line)
    if not match or match["text"].startswith(("Exiting due to", "... ")):
        return None
    return Diagnostic(
        file=match["file"] or "",
        line=int(match["line"] or 0),
        severity="error" if match["kind"] == "Error" else "warning",
        code=match["code"] or "",
        message=match["text"],
    )


def classify(found: Iterable[Diagnostic]) -> Status:
    """What kind of compile error the messages describe."""
    codes = {d.code for d in found if d.severity == "error"}
    if "syntax" in codes:
        return Status.SYNTAX_ERROR
    return Status.UNSUPPORTED if "sorry" in codes else Status.ELAB_ERROR
