// Leaky integrate-and-fire neuron in fixed point with @FRACTION@ fractional bits. One step a clock cycle while en is high.
module lif_neuron (
    input                       clk,
    input                       rst,        // synchronous, active high
    input                       en,
    input  signed [@MSB@:0]     current,
    output reg                  spike,
    output reg signed [@MSB@:0] potential
);
    localparam signed [@WIDE@:0] DECAY     = @DECAY@;
    localparam signed [@WIDE@:0] GAIN      = @GAIN@;
    localparam signed [@WIDE@:0] THRESHOLD = @THRESHOLD@;
    localparam signed [@WIDE@:0] HIGHEST   = @HIGHEST@;
    localparam signed [@WIDE@:0] LOWEST    = -HIGHEST - 1;

    // Wide enough for both products and their sum: nothing overflows before it saturates.
    wire signed [@WIDE@:0] leaked  = (potential * DECAY + current * GAIN) >>> @FRACTION@;
    wire signed [@WIDE@:0] updated = @UPDATED@;
    wire signed [@MSB@:0]  held    = updated > HIGHEST ? HIGHEST : updated < LOWEST ? LOWEST : updated;
    wire                   fires   = held @COMPARE@ THRESHOLD;

    always @(posedge clk)
        if (rst) begin
            spike     <= 1'b0;
            potential <= 0;
        end else if (en) begin
            spike     <= fires;
            potential <= @AFTER@;
        end
endmodule
