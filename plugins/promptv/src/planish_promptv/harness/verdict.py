"""Verdicts from what a simulation printed: whole lines of a fixed form, one of them, and a clean exit. Never a substring."""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple

from planish_promptv.harness.verilog import tokens
from planish_promptv.types import NONCE, Bench, Status, VerdictStyle

_MISMATCHES = re.compile(r"^Mismatches: (\d+) in (\d+) samples\s*$")
_TROUBLE = re.compile(r"\b(errors?|fail(s|ed|ures?)?)\b", re.IGNORECASE)
_BANNER = re.compile(r'"[^"%\n]*\b(passed|pass)\b[^"%\n]*"', re.IGNORECASE)


class Verdict(NamedTuple):
    """What the output says. ``timeout`` is the bench's own marker."""

    status: Status
    mismatches: int | None = None
    samples: int | None = None
    timeout: bool = False
    why: str = ""


def nonce() -> str:
    """A word that nobody can guess, and that is no number or keyword."""
    return f"n{secrets.token_hex(16)}"


def mark(bench: Bench, word: str) -> str:
    """The bench's text with ``word`` put before the verdict that it prints, so that no design can print it.

    A generated bench holds ``@NONCE@`` for it. In a benchmark's own bench the verdict's format string is marked where it
    is found in a string; where it is composed differently the line is still required to be the only one.
    """
    if bench.verdict == "nonce":
        return bench.text.replace(NONCE, word)
    pieces, end = [], 0
    for token in tokens(bench.text):
        if token.kind != "string":
            continue
        if (
            token.text.startswith('"Mismatches: ')
            if bench.verdict == "mismatches"
            else _BANNER.fullmatch(token.text)
        ):
            pieces += [bench.text[end : token.start + 1], word, " "]
            end = token.start + 1
    return "".join(pieces) + bench.text[end:]


def read(output: str, style: VerdictStyle, word: str, strict_timeout: bool = False) -> Verdict:
    """The verdict of a run that ended with exit status 0 and printed ``output``.

    Args:
        style: how the bench speaks, see `Bench.verdict`.
        word: the nonce of this run.
        strict_timeout: a bench that prints TIMEOUT has failed, whatever it counted.
    """
    lines = [line.rstrip("\r") for line in output.split("\n")]
    timeout = any(line.strip() == "TIMEOUT" for line in lines)
    if style == "banner":
        return _banner(lines, word)
    own = [line.removeprefix(word).lstrip() for line in lines if line.startswith(word)]
    foreign = [line for line in lines if _MISMATCHES.match(line)]
    if style == "mismatches" and not own:
        own, foreign = foreign, []
    counts = [match for match in map(_MISMATCHES.match, own) if match]
    if len(counts) != 1 or foreign:
        number = len(counts) + len(foreign)
        return Verdict(
            Status.NO_VERDICT, timeout=timeout, why=f"{number} verdict lines where one is expected"
        )
    mismatches, samples = map(int, counts[0].groups())
    if samples == 0:
        return Verdict(Status.NO_VERDICT, mismatches, samples, timeout, "the bench compared no samples")
    good = mismatches == 0 and not (timeout and strict_timeout)
    return Verdict(Status.PASS if good else Status.FAIL, mismatches, samples, timeout)


def _banner(lines: list[str], word: str) -> Verdict:
    """A pass needs the bench's own pass line and no line that speaks of an error or a failure."""
    trouble = [line for line in lines if _TROUBLE.search(line)]
    if trouble:
        return Verdict(Status.FAIL, why=trouble[0].strip()[:200])
    if any(line.startswith(word) for line in lines):
        return Verdict(Status.PASS)
    return Verdict(Status.NO_VERDICT, why="the bench printed neither its pass line nor a failure")
