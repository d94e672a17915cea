// expect: guard_reject redefinition
primitive RefModule(o, i); output o; input i; table 0 : 0; 1 : 0; endtable endprimitive
module TopModule(input clk, input [3:0] a, output [3:0] y); assign y = 0; endmodule
