"""Benchmarks: known verdicts, users' folders, damaged input, errata."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from promptv_hostile import GOOD, task

from planish_promptv.harness import BENCHMARKS, BenchmarkError, Simulator, golden, load_benchmark
from planish_promptv.types import Status

FULL = bool(os.environ.get("PLANISH_FULL"))

# Verdicts of the references with Icarus Verilog 11.0 and 12.0, as they were measured apart from this harness.
KNOWN = {
    11: {
        "verilogeval-v2": {"pass": 105, "pass+timeout": 2, "elab_error": 1, "unsupported": 1},
        "verilogeval-v1-human": {"pass": 108, "unsupported": 1},
        "verilogeval-v1-machine": {"pass": 101},
        "rtllm-v2": {"pass": 31, "fail": 2, "elab_error": 1},
        "rtllm-v1.1": {"pass": 18, "fail": 1, "elab_error": 1},
    },
    12: {
        "verilogeval-v2": {"pass": 106, "pass+timeout": 2, "elab_error": 1},
        "verilogeval-v1-human": {"pass": 109},
        "verilogeval-v1-machine": {"pass": 101},
        "rtllm-v2": {"pass": 31, "fail": 2, "elab_error": 1},
        "rtllm-v1.1": {"pass": 17, "fail": 1, "elab_error": 2},
    },
}
REASONS = {
    "Prob099_m2014_q6c": (Status.ELAB_ERROR, "is not a port of good1"),
    "Prob151_review2015_fsm": (Status.UNSUPPORTED, "cast"),
    "ring_counter": (Status.ELAB_ERROR, "array"),
    "radix2_div": (Status.FAIL, "expected="),
    "clkgenerator": (Status.FAIL, "failures"),
    "div_16bit": (Status.ELAB_ERROR, "already been declared"),
}


@pytest.fixture(scope="module")
def major(iverilog: None) -> int:
    from planish_promptv.harness import icarus_major

    version = icarus_major()
    if version not in KNOWN:
        pytest.skip(f"no verdicts are on record for Icarus Verilog {version}")
    return version


def run(name: str, data: Path, workers: int) -> golden.Report:
    with Simulator(slots=workers) as simulator:
        return golden.run(load_benchmark(name, data=data), simulator)


def check(name: str, report: golden.Report, major: int) -> None:
    assert report.counts == KNOWN[major][name]
    assert report.disagreements == []
    assert report.refused == 0
    for outcome in report.outcomes:
        if outcome.task.id in REASONS and not outcome.result.passed and major == 11:
            status, words = REASONS[outcome.task.id]
            assert outcome.result.status is status
            assert any(words in d.message for d in outcome.result.diagnostics)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["verilogeval-v2", "rtllm-v2", "rtllm-v1.1"])
def test_golden_verdicts(name: str, verilog_data: Path, major: int) -> None:
    check(name, run(name, verilog_data, 4), major)


@contextmanager
def load(processes: int) -> Iterator[None]:
    """Keep the cores busy."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="minutes long; PLANISH_FULL=1 runs it")
@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize(("workers", "burners"), [(1, 0), (4, 0), (16, 0), (4, 8)])
def test_golden_verdicts_do_not_depend_on_the_machine(
    name: str, workers: int, burners: int, verilog_data: Path, major: int
) -> None:
    with load(burners):
        check(name, run(name, verilog_data, workers), major)


@pytest.mark.slow
def test_golden_verdicts_under_load(verilog_data: Path, major: int) -> None:
    """The slowest references of each kind, with more busy processes than cores."""
    chosen = {
        "Prob082_lfsr32",
        "Prob001_zero",
        "Prob099_m2014_q6c",
        "Prob140_fsm_hdlc",
        "Prob030_popcount255",
    }
    tasks = [t for t in load_benchmark("verilogeval-v2", data=verilog_data) if t.id in chosen]
    with load(2 * (os.cpu_count() or 1)), Simulator(slots=16) as simulator:
        report = golden.run(tasks, simulator)
    assert report.disagreements == []


def test_timeout_marker_fails_where_asked(simulator: Simulator) -> None:
    marked = task('initial #20 $display("TIMEOUT");')
    with Simulator(slots=1, strict_timeout=True, tier=simulator.tier) as strict:
        result = strict.simulate_sync(marked, GOOD)
    assert (result.status, result.timeout_flag, result.mismatches) == (Status.FAIL, True, 0)
    assert simulator.simulate_sync(marked, GOOD).passed


def test_first_mismatch_is_found_in_a_benchmark_dump(verilog_data: Path, simulator: Simulator) -> None:
    one = next(t for t in load_benchmark("verilogeval-v2", data=verilog_data) if t.id == "Prob065_7420")
    result = simulator.simulate_sync(one, (one.reference or "").replace("&", "|"))
    assert result.status is Status.FAIL
    assert result.first_mismatch is not None
    assert set(result.first_mismatch.outputs) == {"p1y", "p2y"}
    assert 2 <= len(result.first_mismatch.rows) <= 9
    assert str(result.mismatches) in result.output


def test_records_are_complete(verilog_data: Path) -> None:
    for name in BENCHMARKS:
        for one in load_benchmark(name, data=verilog_data):
            assert one.ports, one.id
            assert one.description.strip(), one.id
            assert one.reference
            assert one.golden, one.id
            assert type(one).model_validate_json(one.model_dump_json()) == one


def test_code_complete_split(verilog_data: Path, simulator: Simulator) -> None:
    tasks = load_benchmark("verilogeval-v2", split="code-complete", data=verilog_data)
    one = next(t for t in tasks if t.id == "Prob099_m2014_q6c")
    assert one.header
    assert simulator.simulate_sync(one, one.reference or "").passed
    with pytest.raises(BenchmarkError, match="split = 'x'"):
        load_benchmark("verilogeval-v2", split="x", data=verilog_data)


def records(name: str, folder: Path) -> list[dict[str, object]]:
    with gzip.open(folder / name, "rt") as stream:
        return [json.loads(line) for line in stream]


def test_folders_in_upstream_layout(verilog_data: Path, tmp_path: Path, simulator: Simulator) -> None:
    eval_folder, rtl_folder = tmp_path / "dataset_spec-to-rtl", tmp_path / "RTLLM"
    eval_folder.mkdir()
    record = records("verilogeval_v2.jsonl.gz", verilog_data)[3]
    for suffix, key in (("prompt.txt", "prompt_spec_to_rtl"), ("ref.sv", "ref"), ("test.sv", "test")):
        (eval_folder / f"{record['id']}_{suffix}").write_text(record[key])
    for record in records("rtllm_v2.jsonl.gz", verilog_data):
        if record["name"] in ("calendar", "multi_booth_8bit", "adder_32bit"):
            design = rtl_folder / record["path"]
            design.mkdir(parents=True)
            (design / "design_description.txt").write_text(record["description"])
            (design / "testbench.v").write_text(record["testbench"])
            for file, text in {**record["reference"], **record["aux_files"]}.items():
                (design / file).write_text(text)
    for folder, number in ((eval_folder, 1), (rtl_folder, 3)):
        tasks = load_benchmark(folder)
        assert len(tasks) == number
        for one in tasks:
            assert simulator.simulate_sync(one, one.reference or "").passed, one.id


def test_damaged_input_is_named(tmp_path: Path, verilog_data: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"'nosuch' is neither .* verilogeval-v2, "):
        load_benchmark("nosuch")
    with pytest.raises(BenchmarkError, match=r"verilogeval_v2.jsonl.gz is not in"):
        load_benchmark("verilogeval-v2", data=tmp_path)
    with pytest.raises(BenchmarkError, match="no known layout"):
        load_benchmark(tmp_path)
    (tmp_path / "Prob001_x_prompt.txt").write_text("a task")
    with pytest.raises(BenchmarkError, match=r"Prob001_x_ref.sv is missing"):
        load_benchmark(tmp_path)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes((verilog_data / "rtllm_v2.jsonl.gz").read_bytes()[:5000])
    with pytest.raises(BenchmarkError, match=r"cut.jsonl.gz: cannot be read"):
        load_benchmark(cut)
    lines = tmp_path / "lines.jsonl"
    for text, message in (
        ("{", "line 1: JSONDecodeError"),
        ('{"id": 1}', "line 1: KeyError"),
        ("", "no tasks"),
    ):
        lines.write_text(text)
        with pytest.raises(BenchmarkError, match=message):
            load_benchmark(lines)
    design = tmp_path / "rtl" / "nothing"
    design.mkdir(parents=True)
    (design / "design_description.txt").write_text("Module name:\n  x")
    (design / "testbench.v").write_text("module tb; endmodule")
    with pytest.raises(BenchmarkError, match="holds no reference"):
        load_benchmark(tmp_path / "rtl")
    (design / "verified_x.v").write_text("module verified_x; endmodule")
    with pytest.raises(BenchmarkError, match="task nothing names no top module"):
        load_benchmark(tmp_path / "rtl")


def test_errata_are_off_by_default_and_keyed_by_digest(verilog_data: Path, simulator: Simulator) -> None:
    plain = {t.id: t for t in load_benchmark("rtllm-v1.1", data=verilog_data)}
    mended = {t.id: t for t in load_benchmark("rtllm-v1.1", data=verilog_data, errata=True)}
    assert not any(t.excluded for t in plain.values())
    assert mended["radix2_div"].excluded == "the reference fails its own bench"
    assert any("declares expected_result twice" in note for note in mended["div_16bit"].notes)
    assert not simulator.simulate_sync(plain["div_16bit"], plain["div_16bit"].reference or "").passed
    assert simulator.simulate_sync(mended["div_16bit"], mended["div_16bit"].reference or "").passed
    from planish_promptv.harness import errata

    bench = plain["div_16bit"].provided_testbench
    assert bench
    other = plain["div_16bit"].model_copy(
        update={"provided_testbench": bench.model_copy(update={"text": bench.text + " "})}
    )
    assert errata.apply(other) is other
