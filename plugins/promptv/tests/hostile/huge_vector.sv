// expect: oom elab_error
module TopModule(input clk, input [3:0] a, output [3:0] y);
  reg [2147483646:0] wide;
  always @(posedge clk) wide <= {wide, a};
  assign y = wide[3:0];
endmodule
