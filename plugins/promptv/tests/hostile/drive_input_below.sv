// expect: guard_reject drives_input
module Leak(output [3:0] b); assign b = 4'bx; endmodule
module TopModule(input clk, input [3:0] a, output [3:0] y);
  assign y = 0;
  Leak leak(.b(a));
endmodule
