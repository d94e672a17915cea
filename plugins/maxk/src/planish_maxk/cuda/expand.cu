// Compressed rows to dense ones, and what dense rows hold at kept positions. A warp a row.

extern "C" __global__ void __launch_bounds__(32 * WARPS) expand(
    const number* __restrict__ values, const position* __restrict__ index, number* __restrict__ out, long long rows) {
    extern __shared__ __align__(16) number held[];  // [WARPS, width rounded up to 32]
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    long long row = (long long)blockIdx.x * WARPS + warp;
    if (row >= rows) return;
    number* own = held + warp * ROW;
    for (int c = lane; c < ROW; c += 32) own[c] = 0;
    __syncwarp();
    for (int t = lane; t < K; t += 32) own[index[row * K + t]] = values[row * K + t];
    __syncwarp();
#if D % 4 == 0
    for (int c = 4 * lane; c < D; c += 128)
        *reinterpret_cast<Pack<number, 4>*>(out + row * D + c) = load<4>(own + c);
#else
    for (int c = lane; c < D; c += 32) out[row * D + c] = own[c];
#endif
}

extern "C" __global__ void pick(
    const number* __restrict__ dense, const position* __restrict__ index, number* __restrict__ out, long long count) {
    long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step)
        out[i] = dense[i / K * D + index[i]];
}
