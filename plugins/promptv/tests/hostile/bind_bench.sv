// expect: guard_reject bind
module TopModule(input clk, input [3:0] a, output [3:0] y); assign y = 0; endmodule
module Spy; endmodule
bind tb Spy spy();
