// expect: oom timeout_cpu elab_error
// The mutant that grew to 19 GB: the loop variable runs away from its limit.
module TopModule(input clk, input [3:0] a, output [3:0] y);
  genvar i;
  generate for (i = 1; i < 16; i = i - 1) begin : stage wire [63:0] w; assign w = a; end endgenerate
  assign y = a;
endmodule
