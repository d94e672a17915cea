"""A small task with right and wrong designs and benches, for the tests of agents and evaluation."""

from __future__ import annotations

from typing import Any

from planish_promptv.types import Bench, Port, Task

HEADER = "module counter(input clk, input rst, input en, output reg [3:0] q);"
GOOD = f"""{HEADER}
  always @(posedge clk)
    if (rst) q <= 4'd0;
    else if (en) q <= q + 4'd1;
endmodule
"""
TYPO = GOOD.replace("endmodule", "endmodul")
WRONG_EDGE = GOOD.replace("posedge", "negedge")
WRONG_STEP = GOOD.replace("4'd1", "4'd2")
NO_ENABLE = GOOD.replace("else if (en)", "else")


def bench(after_reset: str = "4'd0", compare: str = "q_dut !== q_ref") -> str:
    """A self-checking bench; the arguments spoil it."""
    return f"""module tb;
  reg clk = 0, rst = 1, en = 0;
  wire [3:0] q_dut;
  reg [3:0] q_ref;
  integer errors = 0, samples = 0, i;
  counter dut(.clk(clk), .rst(rst), .en(en), .q(q_dut));
  always #5 clk = ~clk;
  always @(posedge clk) if (rst) q_ref <= {after_reset}; else if (en) q_ref <= q_ref + 4'd1;
  initial begin
    $dumpfile("wave.vcd"); $dumpvars(0, tb);
    repeat (2) @(negedge clk);
    for (i = 0; i < 80; i = i + 1) begin
      @(negedge clk) rst = (i % 23 == 0); en = (i % 3 != 0);
      #4 samples = samples + 1;
      if ({compare}) errors = errors + 1;
    end
    $display("@NONCE@ Mismatches: %0d in %0d samples", errors, samples);
    $finish;
  end
endmodule
"""


GOOD_BENCH = bench()
WRONG_BENCH = bench(after_reset="4'd7")
VACUOUS_BENCH = bench(compare="0")

TASK = Task(
    id="counter",
    description="A 4-bit counter q. On the rising edge of clk: if rst is high q becomes 0, else if en is high q grows by 1.",
    header=HEADER,
    top_name="counter",
    ports=(
        Port(name="clk", direction="input"),
        Port(name="rst", direction="input"),
        Port(name="en", direction="input"),
        Port(name="q", direction="output", width=4),
    ),
    reference=GOOD,
    provided_testbench=Bench(text=GOOD_BENCH, top="tb", verdict="nonce"),
)


def advice(code: str = "", testbench: str = "") -> dict[str, object]:
    """A teacher's answer with at most one finding a side."""
    verdicts = {(True, True): "both", (True, False): "code_wrong", (False, True): "testbench_wrong"}

    def findings(text: str) -> list[dict[str, str]]:
        return [{"where": "line 3", "problem": text, "fix": text}] if text else []

    return {
        "verdict": verdicts.get((bool(code), bool(testbench)), "none"),
        "code_advice": findings(code),
        "testbench_advice": findings(testbench),
    }


def script(**roles: object) -> dict[str, object]:
    """A script: role -> a list of answers (mappings), or of Verilog texts, or of advice."""
    rules = []
    for role, answers in roles.items():
        replies = []
        for answer in answers if isinstance(answers, list) else [answers]:
            if isinstance(answer, str):
                replies.append({"code": answer})
            elif "verdict" in answer:
                replies.append({"json": answer})
            else:
                replies.append(answer)
        rules.append({"role": role, "replies": replies})
    return {"rules": rules}


class Remembering:
    """A simulator that simulates equal pairs once: only for tests with hundreds of samples of a handful of designs."""

    def __init__(self, simulator: Any) -> None:
        self.simulator = simulator
        self.tools = simulator.tools
        self.known: dict[tuple[str, str, str], Any] = {}

    async def simulate(self, task: Task, code: Any, bench: Any = None) -> Any:
        key = (task.id, code.sha256, bench.sha256 if bench else "")
        if key not in self.known:
            self.known[key] = await self.simulator.simulate(task, code, bench)
        return self.known[key]

    async def quality(self, task: Task, bench: Any) -> Any:
        return await self.simulator.quality(task, bench)


def mutable_tasks() -> tuple[list[Task], dict[str, list[str]]]:
    """Three counters of different steps, with five wrong versions of each, one line changed in every one."""
    tasks, mutants = [], {}
    for step in (1, 3, 5):
        right = f"4'd{step}"
        good = GOOD.replace("4'd1", right)
        name = f"counter_by_{step}"
        tasks.append(
            TASK.model_copy(
                update={
                    "id": name,
                    "description": TASK.description.replace("grows by 1", f"grows by {step}"),
                    "reference": good,
                    "provided_testbench": Bench(text=GOOD_BENCH.replace("4'd1", right)),
                }
            )
        )
        mutants[name] = [*wrong_versions(good), good.replace(right, f"4'd{step + 1}")]
    return tasks, mutants


TOP = GOOD.replace("module counter", "module TopModule")
V2_BENCH = """`timescale 1 ps/1 ps
module tb;
  reg clk = 0, rst = 1, en = 0;
  wire [3:0] q_ref, q_dut;
  integer errors = 0, samples = 0, i;
  always #5 clk = ~clk;
  RefModule good1(.clk(clk), .rst(rst), .en(en), .q(q_ref));
  TopModule top_module1(.clk(clk), .rst(rst), .en(en), .q(q_dut));
  wire tb_mismatch = q_ref !== q_dut;
  initial begin
    $dumpfile("wave.vcd"); $dumpvars(1, tb.clk, tb_mismatch, rst, en, q_ref, q_dut);
    repeat (2) @(negedge clk);
    for (i = 0; i < 80; i = i + 1) begin
      @(negedge clk) rst = (i % 23 == 0); en = (i % 3 != 0);
      #4 samples = samples + 1;
      if (tb_mismatch) errors = errors + 1;
    end
    $display("Mismatches: %0d in %0d samples", errors, samples);
    $finish;
  end
endmodule
"""


def write_benchmark(folder: Any) -> Any:
    """A benchmark of two tasks in the layout of VerilogEval v2."""
    folder.mkdir(parents=True)
    for number, step in enumerate((1, 3), 1):
        stem = f"Prob{number:03d}_by{step}"
        top = TOP.replace("4'd1", f"4'd{step}")
        prompt = f"Implement a module named TopModule.\n{TASK.description.replace('grows by 1', f'grows by {step}')}\n"
        (folder / f"{stem}_prompt.txt").write_text(prompt)
        (folder / f"{stem}_ref.sv").write_text(top.replace("TopModule", "RefModule"))
        (folder / f"{stem}_test.sv").write_text(V2_BENCH)
    return folder


def wrong_versions(reference: str) -> list[str]:
    """Wrong versions of a counter, one line changed in every one."""
    changes = [
        ("posedge", "negedge"),
        ("else if (en)", "else"),
        ("q <= q +", "q <= q -"),
        ("if (rst)", "if (!rst)"),
    ]
    return [reference.replace(old, new) for old, new in changes]
