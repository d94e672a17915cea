// expect: elab_error
module SomethingElse(input clk, input [3:0] a, output [3:0] y); assign y = a; endmodule
