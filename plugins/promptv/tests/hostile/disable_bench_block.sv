// expect: guard_reject disable
module TopModule(input clk, input [3:0] a, output [3:0] y);
  assign y = 0;
  initial #7 disable stimulus;
endmodule
