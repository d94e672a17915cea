// Gradients of the kept values and of A's values: the gradient row of each destination lies on chip, is sampled at the
// positions of every source, and added to the source's row by reductions of VEC numbers.
//
// Units of work as in the forward kernel. A lane holds VEC neighbouring kept entries, LANES lanes a source, GROUPS sources
// at once, UNROLL times as many in flight. Only entries `first_slot` to `first_slot + SPAN - 1` of the K are taken: what many
// sources add to is then small enough for the cache.
//
// VALUES, WEIGHTS: which gradients are wanted.

#define STEP (LANES * VEC)
#define PASSES ((SPAN + STEP - 1) / STEP)

// of_values [M, K] has to be zero before the first launch.
extern "C" __global__ void __launch_bounds__(32 * WARPS) backward(
    const node* __restrict__ units, const node* __restrict__ indices, const float* __restrict__ weight,
    const number* __restrict__ grad, const number* __restrict__ values, const position* __restrict__ index,
    float* __restrict__ of_values, float* __restrict__ of_weight, int count, int first_slot) {
    extern __shared__ __align__(16) float rows[];  // [WARPS, ROW]
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / LANES, within = lane % LANES * VEC;
    int unit = blockIdx.x * WARPS + warp;
    if (unit >= count) return;
    Pack<node, 4> work = load<4>(units + 4ll * unit);
    node first = work.at[1];
    int entries = (int)work.at[2];
    if (entries == 0) return;
    float* sampled = rows + warp * ROW;
    stage(sampled, grad + (long long)work.at[0] * D, lane);
    __syncwarp();
    for (int piece = 0; piece < entries; piece += 32) {
        int n = entries - piece < 32 ? entries - piece : 32;
        node source = 0;
        float scale = 1.0f;
        if (lane < n) {
            source = load_once<1>(indices + first + piece + lane).at[0];
#if WEIGHTED
            scale = load_once<1>(weight + first + piece + lane).at[0];
#endif
        }
#pragma unroll 1
        for (int e = 0; e < n; e += GROUPS * UNROLL) {
#if WEIGHTS
            float inner[UNROLL] = {};
#endif
#pragma unroll 1
            for (int pass = 0; pass < PASSES; pass++) {
                int t = pass * STEP + within;
                long long at[UNROLL];
                Pack<position, VEC> p[UNROLL];
#if WEIGHTS
                Pack<number, VEC> v[UNROLL];
#endif
                float a[UNROLL];
                bool live[UNROLL];
#pragma unroll
                for (int u = 0; u < UNROLL; u++) {
                    int s = e + u * GROUPS + group;
                    node j = __shfl_sync(FULL_WARP, source, s % 32);
                    a[u] = WEIGHTED && VALUES ? __shfl_sync(FULL_WARP, scale, s % 32) : 1.0f;
                    live[u] = s < n && (SPAN % STEP == 0 || t < SPAN) && (K % SPAN == 0 || first_slot + t < K);
                    at[u] = (long long)j * K + first_slot + t;
                    if (live[u]) {
                        p[u] = load<VEC>(index + at[u]);
#if WEIGHTS
                        v[u] = load<VEC>(values + at[u]);
#endif
                    }
                }
#pragma unroll
                for (int u = 0; u < UNROLL; u++) {
                    if (live[u]) {
                        float g[VEC];
                        int from[VEC];
                        places(p[u], from);
#pragma unroll
                        for (int i = 0; i < VEC; i++) g[i] = sampled[from[i]];
#if WEIGHTS
#pragma unroll
                        for (int i = 0; i < VEC; i++) inner[u] += g[i] * wide(v[u].at[i]);
#endif
#if VALUES
#pragma unroll
                        for (int i = 0; i < VEC; i++) g[i] *= a[u];
                        add(of_values + at[u], g);
#endif
                    }
                }
            }
#if WEIGHTS
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                int s = e + u * GROUPS + group;
#pragma unroll
                for (int d = LANES / 2; d; d /= 2) inner[u] += __shfl_xor_sync(FULL_WARP, inner[u], d);
                if (lane % LANES == 0 && s < n) {
                    float* to = of_weight + first + piece + s;
                    *to = (first_slot ? *to : 0.0f) + inner[u];
                }
            }
#endif
        }
    }
}
