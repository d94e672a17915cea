// expect: guard_reject instance
module TopModule(input clk, input [3:0] a, output [3:0] y);
  RefModule mine(.clk(clk), .a(a), .y(y));
endmodule
