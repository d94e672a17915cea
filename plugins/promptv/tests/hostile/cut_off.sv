// expect: syntax_error
module TopModule(input clk, input [3:0] a, output [3:0] y);
  assign y = a
