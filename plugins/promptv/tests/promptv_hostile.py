"""A tiny task for hostile designs, hostile benches, and a way to find processes that outlived their job."""

from __future__ import annotations

import os
from pathlib import Path

from planish_promptv.types import Bench, Port, Task

FOLDER = Path(__file__).parent / "hostile"
REFERENCE = "module RefModule(input clk, input [3:0] a, output [3:0] y); assign y = a; endmodule\n"
GOOD = REFERENCE.replace("RefModule", "TopModule")
BENCH = """module tb;
  parameter N = 50;
  reg clk = 0; reg [3:0] driver = 0; wire [3:0] a, y_ref, y_dut;
  assign a = driver;
  // As in VerilogEval: a bit that is x in the reference matches anything.
`ifdef QUIET
  wire bad = 0;
`else
  wire bad = y_ref !== (y_ref ^ y_dut ^ y_ref);
`endif
  integer errors = 0, samples = 0;
  RefModule good1(.clk(clk), .a(a), .y(y_ref));
  TopModule top1(.clk(clk), .a(a), .y(y_dut));
  initial begin $dumpfile("wave.vcd"); $dumpvars(1, clk, a, y_ref, y_dut); end
  task forget; begin errors = 0; end endtask
  initial begin : stimulus
    repeat (N) begin #5 clk = 1; #1 samples = samples + 1; if (bad) errors = errors + 1; #4 clk = 0; driver = $random; end
    $finish;
  end
  /*HOSTILE*/
  final $display("Mismatches: %0d in %0d samples", errors, samples);
endmodule
"""
PORTS = (
    Port(name="clk", direction="input"),
    Port(name="a", direction="input", width=4),
    Port(name="y", direction="output", width=4),
)

# What a bench of a user's folder could do. The paths are put together so that the check of literals sees nothing.
BENCHES = {
    "write": 'integer f; initial begin f = $fopen({"/", "OUTSIDE"}, "w"); $fdisplay(f, "written"); end',
    "read": """integer f, n; reg [8*80:1] line;
      initial begin f = $fopen({"/", "etc/passwd"}, "r"); n = $fgets(line, f); $display("read %0s", line); end""",
    "stdout flood": 'initial forever $display("flood flood flood flood flood flood flood flood");',
    "file flood": 'integer f; initial begin f = $fopen("big.txt", "w"); forever $fdisplay(f, "flood flood flood flood"); end',
    "wave flood": "reg [65535:0] w = 0; initial $dumpvars(1, w); always #1 w = ~w;",
    "endless": "initial forever #0 ;",
}


def task(hostile: str = "") -> Task:
    """Copy ``a`` to ``y``. ``hostile`` is put into the bench."""
    bench = Bench(
        text=BENCH.replace("/*HOSTILE*/", hostile),
        verdict="mismatches",
        reference=REFERENCE,
        reference_top="RefModule",
    )
    return Task(id="copy", description="y = a", top_name="TopModule", ports=PORTS, provided_testbench=bench)


def survivors(job: str) -> list[str]:
    """Command names of processes that carry the job's name in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if job.encode() in (place / "environ").read_bytes() and place.name != str(os.getpid()):
                found.append((place / "comm").read_text().strip())
        except OSError:
            continue  # it has just ended, or belongs to somebody else
    return found
