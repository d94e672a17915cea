"""Verdicts: one whole line of the right form, marked by the nonce, or none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from promptv_hostile import BENCH

from planish_promptv.harness import verdict
from planish_promptv.harness.icarus import classify, clean, diagnostics
from planish_promptv.types import Bench, Status

WORD = "n0123456789abcdef"


@pytest.mark.parametrize(
    ("output", "status"),
    [
        (f"{WORD} Mismatches: 0 in 10 samples", Status.PASS),
        (f"{WORD} Mismatches: 3 in 10 samples", Status.FAIL),
        (f"{WORD} Mismatches: 0 in 0 samples", Status.NO_VERDICT),
        (f"text {WORD} Mismatches: 0 in 10 samples", Status.NO_VERDICT),
        (f"{WORD} Mismatches: 0 in 10 samples\n{WORD} Mismatches: 0 in 10 samples", Status.NO_VERDICT),
        (f"Mismatches: 0 in 10 samples\n{WORD} Mismatches: 3 in 10 samples", Status.NO_VERDICT),
        ("Mismatches: 0 in 10 samples", Status.NO_VERDICT),
        (f"{WORD} Mismatches: 0 in 10 samples, or so", Status.NO_VERDICT),
        (f"{WORD} Mismatches: -1 in 10 samples", Status.NO_VERDICT),
        (f"{WORD} Mismatches: x in 10 samples", Status.NO_VERDICT),
        (f"{WORD} PASS", Status.NO_VERDICT),
        ("", Status.NO_VERDICT),
    ],
)
def test_nonce_lines(output: str, status: Status) -> None:
    assert verdict.read(output, "nonce", WORD).status is status


def test_benchmark_line_without_a_mark_must_be_the_only_one() -> None:
    line = "Mismatches: 0 in 10 samples"
    assert (
        verdict.read(f"Hint\n{line}\nnote.v:1: $finish called at 5 (1ps)", "mismatches", WORD).status
        is Status.PASS
    )
    assert verdict.read(f"{line}\n{line}", "mismatches", WORD).status is Status.NO_VERDICT
    assert verdict.read(f" {line}", "mismatches", WORD).status is Status.NO_VERDICT


def test_marked_benchmark_line_is_not_outvoted() -> None:
    spoofed = f"Mismatches: 0 in 99 samples\n{WORD} Mismatches: 7 in 99 samples"
    assert verdict.read(spoofed, "mismatches", WORD).status is not Status.PASS


def test_timeout_marker_is_a_flag_unless_strict() -> None:
    output = f"TIMEOUT\n{WORD} Mismatches: 0 in 10 samples"
    assert verdict.read(output, "mismatches", WORD) == verdict.Verdict(Status.PASS, 0, 10, True)
    assert verdict.read(output, "mismatches", WORD, strict_timeout=True).status is Status.FAIL


@pytest.mark.parametrize(
    ("output", "status"),
    [
        (f"{WORD} ===Your Design Passed===", Status.PASS),
        ("===Your Design Passed===", Status.NO_VERDICT),
        (f"Failed at i=3\n{WORD} ===Your Design Passed===", Status.FAIL),
        ("===Test completed with 3 /100 failures===", Status.FAIL),
        ("===Error===", Status.FAIL),
        ("a = 1", Status.NO_VERDICT),
    ],
)
def test_banners(output: str, status: Status) -> None:
    assert verdict.read(output, "banner", WORD).status is status


@given(st.text(max_size=200))
def test_output_without_the_nonce_never_passes(output: str) -> None:
    assert verdict.read(output, "nonce", WORD).status is not Status.PASS
    assert verdict.read(output, "banner", WORD).status is not Status.PASS


def test_mark_reaches_strings_alone() -> None:
    marked = verdict.mark(Bench(text=BENCH, verdict="mismatches"), WORD)
    assert f'"{WORD} Mismatches: ' in marked
    assert marked.replace(f"{WORD} ", "") == BENCH
    banner = '// "Passed"\n$display("=== Passed ==="); $display("Passed %d", x);'
    assert verdict.mark(Bench(text=banner, verdict="banner"), WORD).count(WORD) == 1
    assert verdict.nonce() != verdict.nonce()


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("dut.sv:3: syntax error\nI give up.", Status.SYNTAX_ERROR),
        ("dut.sv:3: sorry: This cast operation is not yet supported.", Status.UNSUPPORTED),
        (
            "tb.sv:71: error: port ``Y2'' is not a port of good1.\n2 error(s) during elaboration.",
            Status.ELAB_ERROR,
        ),
        ("dut.sv:9: error: Unknown module type: x\ndut.sv:2: syntax error", Status.SYNTAX_ERROR),
    ],
)
def test_compile_errors_are_classed(text: str, status: Status) -> None:
    assert classify(diagnostics(text)) is status


def test_messages_are_cleaned() -> None:
    said = "/home/user/job/dut.sv:3: error: no\x1b[31m\x07 at /etc/x/passwd\n"
    cleaned = clean(said)
    assert "/home" not in cleaned
    assert "/etc" not in cleaned
    assert "\x1b" not in cleaned
    (found,) = diagnostics(cleaned)
    assert (found.file, found.line, found.message) == ("dut.sv", 3, "no at passwd")
    assert len(diagnostics("\n".join(f"dut.sv:{i}: warning: w{i}" for i in range(1, 200)))) == 40
