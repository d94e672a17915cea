"""A bench from vectors: what the torch reference computed is what the circuit must do, cycle by cycle and bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

from planish_promptv.hardware.rtl import Design
from planish_promptv.types import Bench, Port

VECTORS = "vectors.hex"
_BENCH = """`timescale 1ns/1ps
module tb;
  reg clk = 0;
  reg [@BITS@:0] vectors [0:@LAST@];
  reg [@BITS@:0] now;
@DECLARATIONS@
  integer i, errors = 0, samples = 0;

  @TOP@ dut (.clk(clk)@CONNECTIONS@);

  // Inputs change on the falling edge, the circuit and its expected outputs on the rising one.
  always #5 clk = ~clk;
  always @(posedge clk) {@REFERENCES@} <= now[@OUTPUTS@:0];

  initial begin
    $dumpfile("wave.vcd");
    $dumpvars(1, tb.clk, @DUMPED@);
    $readmemh("@VECTORS@", vectors);
    for (i = 0; i < @COUNT@; i = i + 1) begin
      @(negedge clk);
      now = vectors[i];
      {@INPUTS@} = now[@BITS@:@FROM@];
      @(posedge clk);
      #4 samples = samples + 1;
      if ({@DUTS@} !== {@REFERENCES@}) errors = errors + 1;
    end
    $display("Mismatches: %0d in %0d samples", errors, samples);
    $finish;
  end
endmodule
"""


def vector_bench(
    top: str, inputs: Sequence[Port], outputs: Sequence[Port], rows: Sequence[Sequence[int]]
) -> Bench:
    """A bench that plays ``rows`` into module ``top`` and compares all outputs after every clock edge.

    Args:
        inputs, outputs: ports beside ``clk``; every width is known.
        rows: one a cycle: the inputs before the rising edge, then the outputs after it, as integers (negative ones too).
    """
    ports = [*inputs, *outputs]
    out_bits = sum(_bits(port) for port in outputs)
    bits = sum(_bits(port) for port in ports)
    declarations = [
        *(f"  reg {_range(p)}{p.name} = 0;" for p in inputs),
        *(f"  wire {_range(p)}{p.name}_dut;" for p in outputs),
        *(f"  reg {_range(p)}{p.name}_ref;" for p in outputs),
    ]
    names = [p.name for p in outputs]
    text = Design(_BENCH).substitute(
        BITS=bits - 1,
        LAST=len(rows) - 1,
        COUNT=len(rows),
        OUTPUTS=out_bits - 1,
        FROM=out_bits,
        TOP=top,
        VECTORS=VECTORS,
        DECLARATIONS="\n".join(declarations),
        CONNECTIONS="".join(
            [*(f", .{p.name}({p.name})" for p in inputs), *(f", .{n}({n}_dut)" for n in names)]
        ),
        INPUTS=", ".join(p.name for p in inputs),
        DUTS=", ".join(f"{n}_dut" for n in names),
        REFERENCES=", ".join(f"{n}_ref" for n in names),
        DUMPED=", ".join([*(p.name for p in inputs), *(f"{n}_ref, {n}_dut" for n in names)]),
    )
    words = "\n".join(_pack(row, ports, bits) for row in rows) + "\n"
    return Bench(text=text, top="tb", verdict="mismatches", aux_files={VECTORS: words})


def _pack(row: Sequence[int], ports: Sequence[Port], bits: int) -> str:
    word = 0
    for value, port in zip(row, ports, strict=True):
        width = _bits(port)
        word = word << width | value & ((1 << width) - 1)
    return f"{word:0{-(-bits // 4)}x}"


def _bits(port: Port) -> int:
    assert port.width is not None
    return port.width


def _range(port: Port) -> str:
    return f"[{_bits(port) - 1}:0] " if _bits(port) > 1 else ""
