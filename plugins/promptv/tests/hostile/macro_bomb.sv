// expect: timeout_cpu oom output_limit
`define A 1+1+1+1+1+1+1+1+1+1
`define B `A+`A+`A+`A+`A+`A+`A+`A+`A+`A
`define C `B+`B+`B+`B+`B+`B+`B+`B+`B+`B
`define D `C+`C+`C+`C+`C+`C+`C+`C+`C+`C
`define E `D+`D+`D+`D+`D+`D+`D+`D+`D+`D
`define F `E+`E+`E+`E+`E+`E+`E+`E+`E+`E
`define G `F+`F+`F+`F+`F+`F+`F+`F+`F+`F
`define H `G+`G+`G+`G+`G+`G+`G+`G+`G+`G
module TopModule(input clk, input [3:0] a, output [3:0] y);
  assign y = `H;
endmodule
