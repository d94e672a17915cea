// expect: elab_error oom timeout_cpu
module TopModule(input clk, input [3:0] a, output [3:0] y);
  TopModule again(.clk(clk), .a(a), .y(y));
endmodule
