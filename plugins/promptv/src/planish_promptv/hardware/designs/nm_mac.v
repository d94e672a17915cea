// Multiply-accumulate over groups of @M@ int8 activations with the @N@ int8 weights of a group that are kept, a group a cycle.
// Byte i of x is activation i; byte k of w is a kept weight and field k of index its position in the group.
module nm_mac (
    input                    clk,
    input                    rst,     // synchronous, active high
    input                    valid,
    input                    first,   // this group begins a new sum
    input      [@XMSB@:0]    x,
    input      [@WMSB@:0]    w,
    input      [@IMSB@:0]    index,
    output reg signed [31:0] acc
);
    reg signed [31:0] sum;
    reg signed [7:0]  activation, weight;
    integer k;

    always @* begin
        sum = first ? 32'sd0 : acc;
        for (k = 0; k < @N@; k = k + 1) begin
            activation = x[8 * index[@IBITS@ * k +: @IBITS@] +: 8];
            weight     = w[8 * k +: 8];
            sum        = sum + activation * weight;
        end
    end

    always @(posedge clk)
        if (rst) acc <= 32'sd0;
        else if (valid) acc <= sum;
endmodule
