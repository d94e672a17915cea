// expect: guard_reject drives_input
// The reference reads the same net: fed with x, it matches anything.
module TopModule(input clk, input [3:0] a, output [3:0] y);
  assign y = 0;
  assign a = 4'bx;
endmodule
