"""The guard: what it must refuse, what it must let through, and that text in comments and strings decides nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from promptv_hostile import GOOD, task

from planish_promptv.harness import guard, load_benchmark
from planish_promptv.harness.verilog import tokens

BENCH = task().provided_testbench


@pytest.mark.parametrize("name", ["verilogeval-v2", "rtllm-v2", "rtllm-v1.1"])
def test_no_reference_design_is_refused(name: str, verilog_data: Path) -> None:
    tasks = load_benchmark(name, data=verilog_data)
    refused = {t.id: found for t in tasks if (found := guard.check_design(t.reference, t.provided_testbench))}
    assert refused == {}


def test_no_provided_bench_is_refused(verilog_data: Path) -> None:
    for name in ("verilogeval-v2", "verilogeval-v1-human", "rtllm-v2", "rtllm-v1.1"):
        for one in load_benchmark(name, data=verilog_data):
            assert guard.check_paths(one.provided_testbench) == [], one.id


@pytest.mark.parametrize(
    "body",
    [
        "// tb.y_ref, $fopen, `include, force\n assign y = a;",
        '/* good1.y */ localparam [8*8-1:0] S = "tb.y $fopen"; assign y = a;',
        "typedef struct packed { logic [1:0] hi; logic [1:0] lo; } pair; pair p; assign p.hi = a[3:2]; assign y = {p.hi, a[1:0]};",
        "struct packed { logic [3:0] v; } s; always_comb s.v = a; assign y = s.v;",
        "genvar i; generate for (i = 0; i < 4; i = i + 1) begin : bits wire w; assign w = a[i]; end endgenerate"
        " assign y = {bits[3].w, bits[2].w, bits[1].w, bits[0].w};",
        "typedef enum logic [1:0] { A, B } state; state s; always_comb s = s.next(); assign y = a;",
        "`define WIDE 4\n wire [`WIDE-1:0] w = a; assign y = w;",
        "localparam real R = 1.5; localparam N = $clog2(16); assign y = a + 4'd1 - 4'd1;",
        "copy u(.a(a), .y(y), .*);",
        "reg [3:0] tb; always @* tb = a; assign y = tb;",
    ],
)
def test_ordinary_design_passes(body: str) -> None:
    text = f"module TopModule(input clk, input [3:0] a, output [3:0] y);\n{body}\nendmodule\n"
    assert guard.check_design(text, BENCH) == []


def test_interface_ports_may_be_used() -> None:
    text = """interface bus; logic v; modport in(input v); endinterface
    module TopModule(bus.in b, output y); assign y = b.v; endmodule"""
    assert guard.check_design(text) == []


def test_display_is_allowed_on_request() -> None:
    text = GOOD.replace("assign", 'initial $display("hello"); assign')
    assert [d.code for d in guard.check_design(text)] == ["system_task"]
    assert guard.check_design(text, allow_display=True) == []
    assert guard.check_design(text.replace("$display", "$finish"), allow_display=True) != []


def test_messages_name_line_and_reason() -> None:
    (found,) = guard.check_design("module TopModule;\n\n initial $finish;\nendmodule")
    assert (found.file, found.line, found.code) == ("dut.sv", 3, "system_task")


@given(st.text(alphabet='$.`"\\/*(){}[]ab \n', max_size=60))
def test_any_text_gets_an_answer(text: str) -> None:
    guard.check_design(text, BENCH)
    guard.check_bench(text, "TopModule")


@given(st.text(alphabet="$.`'#01hx+-<>=&|~^(){}[]ab \n", max_size=60))
def test_nothing_falls_between_tokens(text: str) -> None:
    assert "".join(token.text for token in tokens(text)) == "".join(text.split()) or "'" in text


@given(
    st.sampled_from(["$fopen", "tb.y_ref", "force tb.x = 0;", '`include "x"']), st.text("ab \n/*", max_size=8)
)
def test_comments_cannot_hide_code(code: str, noise: str) -> None:
    text = f"module TopModule; /*{noise.replace('*/', '')}*/ {code} endmodule"
    assert guard.check_design(text, BENCH) != []


@pytest.mark.parametrize(
    "piece",
    ["a #( ", "struct { ", "[", "a[0].", "x = (", "typedef enum { } t; t ", "tb.", "`", '"', "begin : "],
)
def test_long_hostile_text_takes_no_long_search(piece: str) -> None:
    """Every piece alone makes a careless reader look to the end of the text again and again."""
    text = "module TopModule; " + piece * 3000
    guard.check_design(text, BENCH)
    guard.check_bench(text, "TopModule")
    assert len(guard.check_design("module TopModule; " + "x = a.b; " * 3000, BENCH)) <= 101
    found = guard.check_design(piece * (guard.LONGEST + 1), BENCH)
    assert [d.code for d in found] == ["length"]
