// expect: guard_reject system_task
module TopModule(input clk, input [3:0] a, output [3:0] y);
  assign y = a;
  integer f, n; reg [8*80:1] line;
  initial begin f = $fopen("/etc/shadow", "r"); n = $fgets(line, f); $display("%0s", line); end
endmodule
