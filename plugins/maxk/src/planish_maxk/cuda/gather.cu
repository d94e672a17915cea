// The gradient of the kept values in fixed order, without atomic additions: a block of WARPS warps takes a source,
// holds its kept positions in registers, and gathers from the gradient rows of the destinations that read it.
//
// LANES lanes a destination, PASSES kept entries a lane, GROUPS destinations at once. The graph is the transposed one;
// `entry` leads to the values of A, which are stored in the order of A.

#define PASSES ((K + LANES - 1) / LANES)

extern "C" __global__ void __launch_bounds__(32 * WARPS) gather(
    const node* __restrict__ indptr, const node* __restrict__ indices, const node* __restrict__ entry,
    const float* __restrict__ weight, const number* __restrict__ grad, const position* __restrict__ index,
    float* __restrict__ of_values) {
    __shared__ float partial[WARPS][PASSES * LANES];
    long long source = blockIdx.x;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / LANES, within = lane % LANES;
    int columns[PASSES];
    float sum[PASSES] = {};
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
        int t = pass * LANES + within;
        columns[pass] = t < K ? index[source * K + t] : 0;
    }
    node last = indptr[source + 1];
    for (node piece = indptr[source] + 32 * warp; piece < last; piece += 32 * WARPS) {
        int n = last - piece < 32 ? (int)(last - piece) : 32;
        node row = 0;
        float scale = 1.0f;
        if (lane < n) {
            row = indices[piece + lane];
#if WEIGHTED
            scale = weight[entry[piece + lane]];
#endif
        }
#pragma unroll 4
        for (int e = 0; e < n; e += GROUPS) {
            int s = e + group;
            node i = __shfl_sync(FULL_WARP, row, s % 32);
            float a = WEIGHTED ? __shfl_sync(FULL_WARP, scale, s % 32) : 1.0f;
            if (s < n)
#pragma unroll
                for (int pass = 0; pass < PASSES; pass++) sum[pass] += a * wide(grad[(long long)i * D + columns[pass]]);
        }
    }
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
#pragma unroll
        for (int d = 16; d >= LANES; d /= 2) sum[pass] += __shfl_xor_sync(FULL_WARP, sum[pass], d);
        if (group == 0) partial[warp][pass * LANES + within] = sum[pass];
    }
    __syncthreads();
    for (int t = threadIdx.x; t < K; t += 32 * WARPS) {
        float total = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) total += partial[w][t];
        of_values[source * K + t] = total;
    }
}
