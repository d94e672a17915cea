// expect: oom timeout_cpu elab_error
module TopModule(input clk, input [3:0] a, output [3:0] y);
  reg [1023:0] store [0:49999999];
  always @(posedge clk) store[a] <= a;
  assign y = store[a];
endmodule
