// expect: guard_reject force
module TopModule(input clk, input [3:0] a, output [3:0] y);
  assign y = 0;
  initial force tb.bad = 0;
endmodule
