"""Mutants, the second oracle, and benches that cannot fail."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from promptv_hostile import BENCH, GOOD, PORTS, task

from planish.errors import PlanishError
from planish_promptv.harness import Limits, Simulator, accepted, load_benchmark
from planish_promptv.harness.equivalence import prove
from planish_promptv.harness.mutants import mutants, score
from planish_promptv.types import Status, Task

FULL = bool(os.environ.get("PLANISH_FULL"))
COUNTER = "module m(input clk, input rst, output reg [3:0] q); always @(posedge clk) if (rst) q <= 0; else q <= q + 1; endmodule"


@pytest.fixture(scope="module")
def yosys(iverilog: None) -> None:
    if shutil.which("yosys") is None:
        pytest.skip("yosys is not installed: apt-get install yosys")


def test_mutants_change_one_token_and_are_the_same_every_time(verilog_data: Path) -> None:
    for one in load_benchmark("rtllm-v2", data=verilog_data):
        assert one.reference
        made = mutants(one)
        assert made == mutants(one)
        assert len({m.text for m in made}) == len(made) <= 8
        for mutant in made:
            assert mutant.before != mutant.after
            old, new = one.reference.splitlines(), mutant.text.splitlines()
            differing = [i for i, (a, b) in enumerate(zip(old, new, strict=True), 1) if a != b]
            assert differing == [mutant.line]
    with pytest.raises(PlanishError, match="no reference"):
        mutants(Task(id="t", description="", top_name="t"))


@pytest.mark.slow
def test_benches_catch_mutants_of_a_sample(verilog_data: Path, iverilog: None) -> None:
    chosen = load_benchmark("verilogeval-v2", data=verilog_data)[10:90:8]
    with Simulator(limits=Limits(cpu_s=20, memory_mb=1024)) as simulator:
        result = score(chosen, simulator, limit=4)
    assert len(result.counted) > 20
    assert result.share >= 0.9
    assert all(isinstance(one.result.status, Status) for one in result.judged)


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="many minutes long; PLANISH_FULL=1 runs it")
def test_mutant_bars(verilog_data: Path, yosys: None) -> None:
    with Simulator(limits=Limits(cpu_s=20, memory_mb=1024)) as simulator:
        verilogeval = score(load_benchmark("verilogeval-v2", data=verilog_data), simulator)
        rtllm = score(load_benchmark("rtllm-v2", data=verilog_data), simulator, prove=True)
    assert verilogeval.share >= 0.95
    assert rtllm.share >= 0.60
    assert rtllm.share_with_proof >= 0.80


@pytest.mark.parametrize(
    ("candidate", "verdict"),
    [
        (COUNTER.replace("q + 1", "1 + q"), "equal"),
        (COUNTER.replace("q + 1", "q - 1"), "different"),
        (COUNTER.replace("posedge", "negedge"), "different"),
        # Different only after 8 cycles.
        (COUNTER.replace("q <= q + 1", "q <= q == 8 ? 0 : q + 1"), "different"),
        (COUNTER.replace("[3:0] q", "[4:0] q"), "unknown"),
        ("module m(input clk); endmodule", "unknown"),
        ("not verilog", "unknown"),
    ],
)
def test_second_oracle(candidate: str, verdict: str, simulator: Simulator, yosys: None) -> None:
    proof = prove(simulator, COUNTER, candidate, "m")
    assert proof.verdict == verdict, proof
    assert (proof.why != "") == (verdict == "unknown")


def test_second_oracle_respects_unknown_outputs(simulator: Simulator, yosys: None) -> None:
    reference = "module m(input [1:0] a, output y); assign y = a == 3 ? 1'bx : a[0]; endmodule"
    free = "module m(input [1:0] a, output y); assign y = a[0]; endmodule"
    assert prove(simulator, reference, free, "m").verdict == "equal"
    assert (
        prove(simulator, free, "module m(input [1:0] a, output y); assign y = a[1]; endmodule", "m").verdict
        == "different"
    )


def test_second_oracle_takes_helper_modules_of_one_name(simulator: Simulator, yosys: None) -> None:
    reference = "module m(input a, output y); h u(a, y); endmodule module h(input a, output y); assign y = ~a; endmodule"
    other = reference.replace("~a", "a")
    assert prove(simulator, reference, reference, "m").verdict == "equal"
    assert prove(simulator, reference, other, "m").verdict == "different"


def test_bench_that_cannot_fail_is_vacuous(simulator: Simulator) -> None:
    def bench(check: str) -> str:
        text = BENCH.replace('"Mismatches', '"@NONCE@ Mismatches').replace(
            "RefModule good1(.clk(clk), .a(a), .y(y_ref));", "assign y_ref = a;"
        )
        return text.replace("if (bad)", f"if ({check})")

    one = task().model_copy(update={"ports": PORTS})
    good = simulator.quality_sync(one, bench("bad"))
    assert not good.vacuous
    assert set(good.stubs.values()) == {Status.FAIL}
    assert simulator.quality_sync(one, bench("0")).vacuous
    assert simulator.quality_sync(one, bench("bad && y_dut !== 0")).stubs["zeros"] is Status.PASS
    blind = simulator.quality_sync(one, bench("y_dut != a"))  # x is no difference for this operator
    assert blind.vacuous
    assert blind.stubs["unknown"] is Status.PASS
    passing = simulator.simulate_sync(one, GOOD, bench("0"))
    assert passing.passed
    assert not accepted(passing, blind)
    assert accepted(passing, good)
    with pytest.raises(PlanishError, match="ports of 'TopModule' are not known"):
        simulator.quality_sync(one.model_copy(update={"ports": None}), bench("1"))
