// expect: guard_reject defparam
module TopModule(input clk, input [3:0] a, output [3:0] y);
  assign y = 0;
  defparam tb.N = 0;
endmodule
