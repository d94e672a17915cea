// Gradients as in the backward kernel, with fewer additions to memory: a block takes a tile of consecutive destinations,
// whose gradient rows all lie on chip, and goes through the tile's entries by source. What a source gets from a tile is
// summed in registers and added once.
//
// Units: first row, rows, first entry, entries; the entries of a tile, sorted by source, may come in several units.
// `packed` holds 256 times the source plus the row within the tile, `order` the entry's place in A.
// LANES lanes share an entry, VEC neighbouring kept entries each; every one of the GROUPS groups of a warp has entries of its
// own, takes BATCH of them at once, UNROLL in flight. Of the K kept entries those from `first_slot` on are taken, SPAN of
// them, which is at most LANES * VEC.
//
// VALUES, WEIGHTS: which gradients are wanted.

#define HELD (BATCH / LANES)
#define ALL_USED (SPAN == LANES * VEC && K % SPAN == 0)

struct Gradients {
    const float* rows;  // [rows of a tile, ROW], on chip
    const number* values;
    const position* index;
    const node* order;  // of the group's next entry
    float *of_values, *of_weight;
    int slot;
    bool used, first;  // whether the lane has a slot; whether of_weight was not written yet
};

// Where in `rows` the numbers at positions p of a row lie.
__device__ __forceinline__ void within_tile(unsigned row, const Pack<position, VEC>& p, int (&at)[VEC]) {
#if BYTE_PLACES && D == 256 && defined(__CUDA_ARCH__)
    unsigned all = places_in_bytes(p);
#pragma unroll
    for (int i = 0; i < VEC; i++) at[i] = __byte_perm(all, row, 0x5540 + i);  // row * 256 + place, in one instruction
#else
    places(p, at);
#pragma unroll
    for (int i = 0; i < VEC; i++) at[i] += row * ROW;
#endif
}

// BATCH entries of a group, all of which exist if WHOLE; -1 stands for one that does not.
template <bool WHOLE>
__device__ __forceinline__ void take(
    const Gradients& to, const node (&held)[HELD], const float (&scale)[HELD], int lane, node& current, float (&sum)[VEC]) {
    int first_lane = lane / LANES * LANES;
#pragma unroll
    for (int e = 0; e < BATCH; e += UNROLL) {
        node entry[UNROLL];
        float a[UNROLL];
        Pack<position, VEC> p[UNROLL];
#if WEIGHTS
        Pack<number, VEC> v[UNROLL];
        float inner[UNROLL] = {};
#endif
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            int from = first_lane + (e + u) % LANES;
            entry[u] = __shfl_sync(FULL_WARP, held[(e + u) / LANES], from);
            a[u] = WEIGHTED && VALUES ? __shfl_sync(FULL_WARP, scale[(e + u) / LANES], from) : 1.0f;
            if ((WHOLE || entry[u] >= 0) && (ALL_USED || to.used)) {
                long long at = (long long)(entry[u] >> 8) * K + to.slot;
                p[u] = load<VEC>(to.index + at);
#if WEIGHTS
                v[u] = load<VEC>(to.values + at);
#endif
            }
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            if ((WHOLE || entry[u] >= 0) && (ALL_USED || to.used)) {
                int at[VEC];
                within_tile(entry[u] & 255, p[u], at);
                node source = entry[u] >> 8;
                bool fresh = source != current;
#if VALUES
                if (fresh) add(to.of_values + (long long)current * K + to.slot, sum);
#endif
#pragma unroll
                for (int i = 0; i < VEC; i++) {
                    float g = to.rows[at[i]];
                    sum[i] = a[u] * g + (fresh ? 0.0f : sum[i]);
#if WEIGHTS
                    inner[u] += g * wide(v[u].at[i]);
#endif
                }
                current = source;
            }
        }
#if WEIGHTS
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
#pragma unroll
            for (int d = LANES / 2; d; d /= 2) inner[u] += __shfl_xor_sync(FULL_WARP, inner[u], d);
            if (lane == first_lane && entry[u] >= 0) {
                float* of = to.of_weight + to.order[e + u];
                *of = (to.first ? 0.0f : *of) + inner[u];
            }
        }
#endif
    }
}

// of_values [M, K] has to be zero before the first launch.
extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS) tiles(
    const node* __restrict__ units, const node* __restrict__ packed, const node* __restrict__ order,
    const float* __restrict__ weight, const number* __restrict__ grad, const number* __restrict__ values,
    const position* __restrict__ index, float* __restrict__ of_values, float* __restrict__ of_weight, int first_slot) {
    extern __shared__ __align__(16) float rows[];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / LANES, within = lane % LANES;
    Pack<node, 4> work = load<4>(units + 4ll * blockIdx.x);
    for (int r = warp; r < (int)work.at[1]; r += WARPS)
        stage(rows + r * ROW, grad + (long long)(work.at[0] + r) * D, lane);
    __syncthreads();
    // Equal shares of the entries: a source at the border of two is added to twice.
    int entries = (int)work.at[3], share = (entries + WARPS * GROUPS - 1) / (WARPS * GROUPS);
    int begin = (warp * GROUPS + group) * share, mine = entries - begin < share ? entries - begin : share;
    long long base = (long long)work.at[2] + begin;
    int slot = first_slot + within * VEC;
    bool used = within * VEC < SPAN && slot < K;
    Gradients to = {rows, values, index, order + base, of_values, of_weight, slot, used, first_slot == 0};
    node current = mine > 0 ? packed[base] >> 8 : 0;
    float sum[VEC] = {};
#pragma unroll 1
    for (int piece = 0; piece < share; piece += BATCH, to.order += BATCH) {
        node held[HELD];
        float scale[HELD];
#pragma unroll
        for (int q = 0; q < HELD; q++) {
            int s = piece + q * LANES + within;
            held[q] = s < mine ? packed[base + s] : -1;
            scale[q] = WEIGHTED && VALUES && s < mine ? weight[base + s] : 1.0f;
        }
        if (__any_sync(FULL_WARP, mine - piece < BATCH)) take<false>(to, held, scale, lane, current, sum);
        else take<true>(to, held, scale, lane, current, sum);
    }
#if VALUES
    if (mine > 0 && used) add(of_values + (long long)current * K + slot, sum);
#endif
}
