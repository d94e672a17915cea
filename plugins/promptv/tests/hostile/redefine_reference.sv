// expect: guard_reject redefinition
module TopModule(input clk, input [3:0] a, output [3:0] y); assign y = 0; endmodule
module RefModule(input clk, input [3:0] a, output [3:0] y); assign y = 0; endmodule
