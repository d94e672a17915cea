// y[i] = sum over the entries (i, j) of A of a_ij times compressed row j, into accumulators on chip.
//
// A warp takes a unit of work: a row of A, or a piece of a long one. It reads GROUPS compressed rows at once, LANES lanes
// each, VEC neighbouring kept entries a lane, and adds every row into an accumulator of its own, so that no two lanes
// meet; UNROLL times as many rows are in flight. Sums of whole rows go straight to y, which needs no zeroing; those of pieces are
// added up by a second kernel. Both in fixed order: results repeat bit by bit.

#define STEP (LANES * VEC)
#define PASSES ((K + STEP - 1) / STEP)

// Entries e, e + 1, ... of the 32 whose sources and weights the lanes hold, `n` of them.
template <bool WHOLE>
__device__ __forceinline__ void gather(
    float* mine, const number* values, const position* index, node source, float scale, int e,
    int n, int group, int within) {
#pragma unroll 1
    for (int pass = 0; pass < PASSES; pass++) {
        int t = pass * STEP + within;
        Pack<number, VEC> v[UNROLL];
        Pack<position, VEC> p[UNROLL];
        float a[UNROLL];
        bool live[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            int s = e + u * GROUPS + group;
            node j = __shfl_sync(FULL_WARP, source, s);
            a[u] = WEIGHTED ? __shfl_sync(FULL_WARP, scale, s) : 1.0f;
            live[u] = (WHOLE || s < n) && (GROUPS * LANES == 32 || group < GROUPS) && (K % STEP == 0 || t < K);
            if (live[u]) {
                long long at = (long long)j * K + t;
                v[u] = load<VEC>(values + at);
                p[u] = load<VEC>(index + at);
            }
        }
        __syncwarp();  // or else the compiler moves loads behind the first additions, and fewer are in flight
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            if (live[u]) {
                float old[VEC];
                int to[VEC];
                places(p[u], to);
#pragma unroll
                for (int i = 0; i < VEC; i++) old[i] = mine[to[i]];
#pragma unroll
                for (int i = 0; i < VEC; i++) mine[to[i]] = old[i] + a[u] * wide(v[u].at[i]);
            }
            __syncwarp();
        }
    }
}

// The sum of the warp's accumulators, four columns a lane where the width allows.
template <typename T> __device__ __forceinline__ void flush(const float* all, int used, T* to, T (*as)(float), int lane) {
#if D % 4 == 0
#pragma unroll 2
    for (int c = 4 * lane; c < D; c += 128) {
        float sum[4] = {0, 0, 0, 0};
#pragma unroll
        for (int g = 0; g < GROUPS; g++)
            if (g < used)
#pragma unroll
                for (int i = 0; i < 4; i++) sum[i] += all[g * ROW + place(c + i)];
        Pack<T, 4> out;
#pragma unroll
        for (int i = 0; i < 4; i++) out.at[i] = as(sum[i]);
        store_once<4>(to + c, out);
    }
#else
    for (int c = lane; c < D; c += 32) {
        float sum = 0;
        for (int g = 0; g < used; g++) sum += all[g * ROW + place(c)];
        to[c] = as(sum);
    }
#endif
}

__device__ __forceinline__ float same(float x) { return x; }

// units [count, 4]: row, first entry, entries, and where in `pieces` [., D] the sum goes, or -1 for a whole row.
extern "C" __global__ void __launch_bounds__(32 * WARPS) forward(
    const node* __restrict__ units, const node* __restrict__ indices, const float* __restrict__ weight,
    const number* values, const position* index, number* y, float* pieces, int count) {
    extern __shared__ __align__(16) float accumulators[];  // [WARPS, GROUPS, ROW]
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / LANES, within = lane % LANES * VEC;
    int unit = blockIdx.x * WARPS + warp;
    if (unit >= count) return;
    Pack<node, 4> work = load<4>(units + 4ll * unit);
    node first = work.at[1];
    int entries = (int)work.at[2], used = entries < GROUPS ? entries : GROUPS;
    float* own = accumulators + warp * GROUPS * ROW;
    for (int i = lane; i < used * (ROW / 4); i += 32) reinterpret_cast<float4*>(own)[i] = make_float4(0, 0, 0, 0);
    __syncwarp();
    float* mine = own + (GROUPS * LANES == 32 || group < GROUPS ? group : 0) * ROW;
    for (int piece = 0; piece < entries; piece += 32) {
        int n = entries - piece < 32 ? entries - piece : 32;
        node source = 0;
        float scale = 1.0f;
        if (lane < n) {
            source = indices[first + piece + lane];
#if WEIGHTED
            scale = weight[first + piece + lane];
#endif
        }
        int e = 0;
#pragma unroll 1
        for (; e + GROUPS * UNROLL <= n; e += GROUPS * UNROLL)
            gather<true>(mine, values, index, source, scale, e, n, group, within);
        if (e < n) gather<false>(mine, values, index, source, scale, e, n, group, within);
    }
    if (work.at[3] < 0) flush<number>(own, used, y + (long long)work.at[0] * D, narrow, lane);
    else flush<float>(own, used, pieces + (long long)work.at[3] * D, same, lane);
}

// cuts [., 3]: row, its first piece, and how many. A block a row.
extern "C" __global__ void combine(
    const node* __restrict__ cuts, const float* __restrict__ pieces, number* __restrict__ y) {
    const node* cut = cuts + 3ll * blockIdx.x;
    long long row = cut[0], first = cut[1];
    int parts = (int)cut[2];
    for (int c = threadIdx.x; c < D; c += blockDim.x) {
        float sum = 0;
#pragma unroll 4
        for (int i = 0; i < parts; i++) sum += pieces[(first + i) * D + c];
        y[row * D + c] = narrow(sum);
    }
}
