// The gradient of A's values: out[e] = row_scale[i] column_scale[j] <grad[i], x[j]> for every entry e = (i, j) of A.
// Blocks and warps are given work as in spmm.cu; a group of LANES lanes has an entry, UNROLL entries in flight.

extern "C" __global__ void __launch_bounds__(THREADS) sddmm(
    const int4* tasks, const int4* chunks, const int* columns, const float* row_scale, const float* column_scale,
    const char* grad, const char* x, float* out, long long stride, int width) {
    __shared__ int next;
    constexpr int SIDE = WARP / LANES;
    const int lane = threadIdx.x % WARP, within = lane % LANES, side = lane / LANES;
    const int4 one = chunks[2 * blockIdx.x];
    const int all = chunks[2 * blockIdx.x + 1].x;
    const long long base = (u32)one.x | (long long)one.y << 32;
    if (threadIdx.x == 0) next = THREADS / WARP;
    __syncthreads();
    int turn = threadIdx.x / WARP;
#pragma unroll 1
    while (turn < all) {
        const int4 task = __ldg(tasks + one.z + turn);
        const long long first = base + task.y;
        const char* of_row = grad + task.x * stride;
        float scale = 1.f;
#if ROW_SCALE == 1
        scale = __ldg(row_scale + task.x);
#endif
#pragma unroll 1
        for (int start = 0; start < task.z; start += WARP) {
            const int live = min(task.z - start, WARP);
            const int column = lane < live ? once(columns + first + start + lane) : 0;
#pragma unroll 1
            for (int j = side; j - side < live; j += SIDE * UNROLL) {
                float dot[UNROLL] = {};
                const char* of_column[UNROLL];
#pragma unroll
                for (int u = 0; u < UNROLL; u++)
                    of_column[u] = x + __shfl_sync(FULL, column, j + u * SIDE) * stride;
#pragma unroll 1
                for (int c = within * VEC; c < width; c += LANES * VEC) {
                    const int at = c * (int)sizeof(item);
                    Parts parts[UNROLL];
#pragma unroll
                    for (int u = 0; u < UNROLL; u++) {
                        parts[u] = Parts();
                        if (j + u * SIDE < live) parts[u] = load(of_column[u] + at);
                    }
                    const Parts row = load(of_row + at);
#pragma unroll
                    for (int u = 0; u < UNROLL; u++)
#pragma unroll
                        for (int i = 0; i < VEC; i++) dot[u] = fmaf(unpacked(row, i), unpacked(parts[u], i), dot[u]);
                }
#pragma unroll
                for (int u = 0; u < UNROLL; u++) {
#pragma unroll
                    for (int step = 1; step < LANES; step *= 2) dot[u] += __shfl_xor_sync(FULL, dot[u], step);
                    const int k = j + u * SIDE;
                    if (within == 0 && k < live) {
                        float value = dot[u] * scale;
#if COLUMN_SCALE
                        value *= __ldg(column_scale + *(columns + first + start + k));
#endif
                        __stcs(out + first + start + k, value);
                    }
                }
            }
        }
        if (lane == 0) turn = atomicAdd(&next, 1);
        turn = __shfl_sync(FULL, turn, 0);
    }
}
