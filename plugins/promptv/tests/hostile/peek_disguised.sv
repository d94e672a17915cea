// expect: guard_reject hierarchical
// A generate scope of the same name must not make the path look like its own.
module TopModule(input clk, input [3:0] a, output [3:0] y);
  generate if (1) begin : good1 wire z; end endgenerate
  assign y = good1.y;
endmodule
