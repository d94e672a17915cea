// expect: guard_reject system_task
module TopModule(input clk, input [3:0] a, output [3:0] y);
  assign y = a;
  reg [7:0] m [0:63];
  initial $readmemh("/etc/passwd", m);
endmodule
