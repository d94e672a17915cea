// expect: oom timeout_cpu
module Leaf(input i, output o); assign o = ~i; endmodule
module TopModule(input clk, input [3:0] a, output [3:0] y);
  wire [20000000:0] chain;
  assign chain[0] = a[0];
  genvar g;
  generate for (g = 0; g < 20000000; g = g + 1) begin : link Leaf leaf(.i(chain[g]), .o(chain[g + 1])); end endgenerate
  assign y = chain[20000000];
endmodule
