// expect: guard_reject port_direction
module TopModule(input clk, inout [3:0] a, output [3:0] y);
  assign y = 0;
  assign a = 4'bx;
endmodule
