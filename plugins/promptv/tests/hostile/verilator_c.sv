// expect: guard_reject system_task
module TopModule(input clk, input [3:0] a, output [3:0] y);
  assign y = a;
  initial $c("system(\"touch /tmp/planish-hostile\");");
endmodule
