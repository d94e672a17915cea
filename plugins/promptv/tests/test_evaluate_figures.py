"""Degeneration measures from steps that are written out, and waveforms from a table that is."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from planish_promptv.agents.result import GenerationResult, Step
from planish_promptv.agents.trace import Trace
from planish_promptv.evaluate.degeneration import measure
from planish_promptv.evaluate.folder import Review, Scored
from planish_promptv.evaluate.waves import waveform
from planish_promptv.jsonl import read
from planish_promptv.types import FirstMismatch, Stage, Status


def step(round_: int, stage: Stage, signature: str, attempt: int = 0, repaired: bool = True) -> Step:
    return Step(
        attempt=attempt,
        round=round_,
        code="c",
        stage=stage,
        status=Status.FAIL,
        signature=signature,
        repaired=("code",) if repaired and round_ else (),
        changed=("code",) if repaired and round_ else (),
    )


def test_degeneration_measures() -> None:
    steps = (
        step(0, Stage.COMPILE, "a"),
        step(1, Stage.SIMULATE, "b"),  # a repair that helps
        step(2, Stage.SIMULATE, "b"),  # one that changes nothing that shows
        step(3, Stage.COMPILE, "a"),  # one that loses a stage
        step(0, Stage.SIMULATE, "b", attempt=1),  # a fresh start is no repair
        step(1, Stage.SIMULATE, "d", attempt=1, repaired=False),  # neither is a round without learners
    )
    result = GenerationResult(
        task="t", sample=0, mode="promptv", state="exhausted", steps=steps, repairs=4, no_ops=1
    )
    reviews = (
        Review(attempt=0, round=1, saw_error=True, wrong=True),
        Review(attempt=0, round=2, saw_error=False, wrong=True),
        Review(attempt=0, round=2, saw_error=True, wrong=False),
    )
    found = measure([Scored(key="k", task="t", sample=0, result=result, reviews=reviews)])
    assert (found.retained_error.count, found.retained_error.of) == (2, 4)
    assert (found.no_op.count, found.no_op.of) == (1, 4)
    assert {n: (s.count, s.of) for n, s in found.regression.items()} == {1: (0, 1), 2: (0, 1), 3: (1, 1)}
    assert {n: s.value for n, s in found.recall.items()} == {1: 1.0, 2: 0.0}
    assert {n: s.value for n, s in found.false_alarm.items()} == {2: 1.0}
    assert {n: s.value for n, s in found.accuracy.items()} == {1: 1.0, 2: 0.0}
    assert str(measure([]).retained_error) == "not measured"


def test_waveform_is_sound_svg_with_the_differing_samples_shaded() -> None:
    mismatch = FirstMismatch(
        time=20,
        timescale="1ns",
        outputs={"q<": 20},
        columns=("clk", "a&b", "q<_ref", "q<_dut"),
        rows=(
            (10, ("0", "1f", "0", "0")),
            (20, ("1", "1f", "1", "0")),
            (30, ("0", "x", "x", "1")),
            (40, ("z", "20", "1", "0")),
        ),
    )
    figure = ElementTree.fromstring(waveform(mismatch))
    shapes = [element.get("class") for element in figure.iter()]
    assert shapes.count("wrong") == 2, "an unknown reference is no mismatch"
    assert any("unknown" in (shape or "") for shape in shapes)
    texts = ["".join(element.itertext()) for element in figure.iter("text")]
    assert {"clk", "a&b", "q<_ref", "q<_dut", "1f", "20 ◂ first"} <= set(texts)
    assert waveform(FirstMismatch(time=0)) == ""


def test_a_trace_goes_on_where_it_agrees_and_is_kept_where_it_does_not(tmp_path: Path) -> None:
    path = tmp_path / "t.000.jsonl"

    def write(*names: str) -> list[str]:
        trace = Trace(path)
        for name in names:
            trace.add("decision", what=name, cpu_s=time.monotonic())
        trace.close()
        return [line["what"] for line in read(path)]

    assert write("a", "b") == ["a", "b"]
    first = path.read_bytes()
    assert write("a", "b", "c") == ["a", "b", "c"]
    assert path.read_bytes().startswith(first), "what agrees but for times is not written again"
    assert write("a", "x") == ["a", "x"]
    assert [line["seq"] for line in read(path)] == [0, 1]
    assert [line["what"] for line in read(tmp_path / "t.000.1.old")] == ["a", "b", "c"]
