"""The little that is understood of Verilog, and the waveform reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from planish_promptv.harness import stubs, vcd, verilog
from planish_promptv.types import FirstMismatch, Port, Task

ANSI = """module top #(parameter W = 8, parameter D = (1 + 2)) (
    input clk, rst_n, // two
    input signed [7:0] a, input [W-1:0] b,
    output reg [3:0] q = 0, output y
);
  sub #(.N(3)) u1 (.x(a)), u2[1:0] (.x(b));
  assign y = sub_like;
endmodule
module sub(x); input [2:0] x; endmodule
"""


def test_ports_of_both_styles() -> None:
    expected = (
        Port(name="clk", direction="input"),
        Port(name="rst_n", direction="input"),
        Port(name="a", direction="input", width=8, signed=True),
        Port(name="b", direction="input", width=None),
        Port(name="q", direction="output", width=4),
        Port(name="y", direction="output"),
    )
    assert verilog.ports(ANSI, "top") == expected
    assert verilog.ports(ANSI, "sub") == (Port(name="x", direction="input", width=3),)
    assert verilog.ports(ANSI, "nowhere") is None
    old = "module m(a, q); input [7:0] a; output q; reg q; endmodule"
    assert [(p.name, p.width) for p in verilog.ports(old, "m") or ()] == [("a", 8), ("q", 1)]


def test_modules_instances_and_top() -> None:
    assert [m.name for m in verilog.modules(ANSI)] == ["top", "sub"]
    assert [name for _, name in verilog.instances(verilog.modules(ANSI)[0], {"sub"})][:1] == ["u1"]
    assert verilog.top_of(ANSI) == "top"
    assert (verilog.header(ANSI, "top") or "").endswith(");")
    assert verilog.top_of("") == ""


def test_rename_leaves_strings_and_comments() -> None:
    text = 'module a; /* a */ initial $display("a"); a_b a(); endmodule // a'
    assert (
        verilog.rename(text, {"a": "z"}) == 'module z; /* a */ initial $display("a"); a_b z(); endmodule // a'
    )


def test_stubs_fit_nets_and_registers() -> None:
    task = Task(id="t", description="", top_name="top", reference=ANSI)
    zeros = stubs.stubs(task)["zeros"]
    assert "assign y = '0;" in zeros
    assert "initial begin q = '0; end" in zeros


DUMP = """$timescale 1ps $end
$scope module tb $end
$var wire 1 ! clk $end
$var wire 8 " q_ref [7:0] $end
$var wire 8 # q_dut [7:0] $end
$var wire 1 $ y_ref $end
$var wire 1 % y_dut $end
$scope module dut $end
$var wire 8 & q_dut $end
$upscope $end
$upscope $end
$enddefinitions $end
#0
$dumpvars
0!
bx "
bx #
x$
1%
b11111111 &
$end
#5
1!
b101 "
b101 #
#10
0!
0$
#15
1!
b110 "
#15
b110 #
#20
0!
b111 "
bx #
#25
1!
"""


def read(tmp_path: Path, text: str) -> FirstMismatch | None:
    path = tmp_path / "wave.vcd"
    path.write_text(text)
    return vcd.first_mismatch(path)


def test_first_mismatch_of_each_output(tmp_path: Path) -> None:
    found = read(tmp_path, DUMP)
    assert found is not None
    # y differs from 10 on: before, the reference is unknown. q differs at 20 alone: at 15 it only changes late.
    assert (found.time, found.outputs, found.timescale) == (10, {"y": 10, "q": 20}, "1ps")
    assert found.columns == ("clk", "q_ref", "q_dut", "y_ref", "y_dut")
    assert [time for time, _ in found.rows] == [0, 5, 10, 15, 20]
    assert found.rows[1][1] == ("1", "5h", "5h", "x", "1")
    assert "> 10" in " ".join(found.table().split())


def test_no_mismatch_and_damaged_dumps(tmp_path: Path) -> None:
    assert read(tmp_path, DUMP.replace("0$\n", "1$\n").replace("bx #\n#25", "b111 #\n#25")) is None
    assert read(tmp_path, "") is None
    assert read(tmp_path, DUMP[: len(DUMP) // 2]) is None
    assert read(tmp_path, "#99999999999999999999\nb\n$var\n#x\n") is None
    assert vcd.first_mismatch(tmp_path / "missing.vcd") is None


def test_large_dump_is_read_up_to_the_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vcd, "CAP", DUMP.index("#10"))
    assert read(tmp_path, DUMP) is None
