// expect: timeout_cpu
module TopModule(input clk, input [3:0] a, output [3:0] y);
  reg ring = 0;
  assign y = a;
  always @(posedge clk) forever #0 ring = ~ring;
endmodule
