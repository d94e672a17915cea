// expect: guard_reject instance
module TopModule(input clk, input [3:0] a, output [3:0] y);
  tb again();
  assign y = a;
endmodule
