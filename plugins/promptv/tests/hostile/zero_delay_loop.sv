// expect: timeout_cpu
module TopModule(input clk, input [3:0] a, output reg [3:0] y);
  always @(posedge clk) begin y = a; while (y == a) y = a; end
endmodule
