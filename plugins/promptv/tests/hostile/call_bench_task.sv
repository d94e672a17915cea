// expect: elab_error
// A task is found by its bare name from below: no dot gives it away.
module TopModule(input clk, input [3:0] a, output [3:0] y);
  assign y = 0;
  always #1 forget;
endmodule
