// expect: guard_reject system_task
module TopModule(input clk, input [3:0] a, output [3:0] y);
  assign y = a;
  integer f;
  initial begin f = $fopen("/etc/planish-hostile", "w"); $fdisplay(f, "written"); $fclose(f); end
endmodule
