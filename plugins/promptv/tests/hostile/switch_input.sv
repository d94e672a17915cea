// expect: guard_reject tran
module TopModule(input clk, input [3:0] a, output [3:0] y);
  supply0 low;
  tran t(a[0], low);
  assign y = a;
endmodule
