// expect: guard_reject system_task
// The name of the task is put together by macros: only the expanded text shows it.
`define GLUE(a, b) a``b
module TopModule(input clk, input [3:0] a, output [3:0] y);
  assign y = a;
  integer f;
  initial f = `GLUE($fo, pen)("/etc/planish-hostile", "w");
endmodule
