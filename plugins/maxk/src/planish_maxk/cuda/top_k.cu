// Top-k of every row to compressed rows. A warp holds a row in registers: in each of CHUNKS rounds VEC neighbouring
// columns a lane.
//
// The limit is searched by counting: first where a normal distribution of the row's mean and deviation would have it,
// then along that distribution's slope, then by interpolation between the nearest counts above and below K. A count of
// exactly K ends the search; no rounding on the way can change what is chosen. Rows with NaN, infinity or ties at the
// limit, and those that interpolation does not settle, are bisected over integers in the order of the floats.
//
// QUANTILE, SLOPE: where the standard normal distribution has its K / D, and how far it falls there for one of D more;
// FULL: D is VEC * 32 * CHUNKS.

#define SLOTS (VEC * CHUNKS)
#if NUMBER == 0
#define TRIES 12
#define SHIFT 0
#else
#define TRIES 6
#define SHIFT (NUMBER == 1 ? 13 : 16)  // lower bits of a widened 16-bit number say nothing
#endif
#define LARGEST (0xfffffffeu >> SHIFT)

// Unsigned integers in the order of the floats: -0 equals 0, NaN is the largest.
__device__ __forceinline__ unsigned key(float x) {
    if (x != x) return LARGEST;
    int bits = __float_as_int(x + 0.0f);
    return ((unsigned)bits ^ ((unsigned)(bits >> 31) | 0x80000000u)) >> SHIFT;
}

__device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float root(float x) {
    float y;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ int column(int slot, int lane) { return (slot / VEC * 32 + lane) * VEC + slot % VEC; }

__device__ __forceinline__ void read(float (&v)[SLOTS], const number* x, int lane) {
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        if (FULL || column(c * VEC, lane) < D) {
            Pack<number, VEC> got = load<VEC>(x + column(c * VEC, lane));
#pragma unroll
            for (int j = 0; j < VEC; j++) v[c * VEC + j] = wide(got.at[j]);
        } else {
#pragma unroll
            for (int j = 0; j < VEC; j++) v[c * VEC + j] = -INFINITE;
        }
    }
}

// How many numbers of the row satisfy `test`, on every lane. Counted as floats, whose additions run beside the
// comparisons; the sum of the lanes' bits is a known offset away from the sum of the counts.
#define MAGIC 8388608.0f
template <typename Test> __device__ __forceinline__ unsigned count(Test test) {
    float n = MAGIC;
#pragma unroll
    for (int i = 0; i < SLOTS; i++)
        if (test(i)) n += 1.0f;
    return __reduce_add_sync(FULL_WARP, __float_as_uint(n)) - (0x4b000000u << 5);
}

// Exclusive sums over the lanes, and the warp's sum; of two 16-bit counts in one register, too.
__device__ __forceinline__ unsigned before(unsigned n, int lane, unsigned& total) {
    unsigned sum = n;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        unsigned other = __shfl_up_sync(FULL_WARP, sum, d);
        if (lane >= d) sum += other;
    }
    total = __shfl_sync(FULL_WARP, sum, 31);
    return sum - n;
}

// If s >= limit: n += step.
__device__ __forceinline__ void tally(float s, float limit, unsigned& n, unsigned step) {
    asm("{ .reg .pred p; setp.ge.f32 p, %1, %2; @p add.u32 %0, %0, %3; }" : "+r"(n) : "f"(s), "f"(limit), "r"(step));
}

// If s >= limit: v and its column go to shared memory at `value` and `where`, which move on.
__device__ __forceinline__ void put(float s, float limit, number v, int c, unsigned& value, unsigned& where) {
#if NUMBER == 0
#define STORE "st.shared.f32"
#define REGISTER "f"
#else
#define STORE "st.shared.u16"
#define REGISTER "h"
#endif
    asm volatile(
        "{ .reg .pred p; setp.ge.f32 p, %2, %3; @p " STORE " [%0], %4; @p st.shared.u%7 [%1], %5; "
        "@p add.u32 %0, %0, %6; @p add.u32 %1, %1, %8; }"
        : "+r"(value), "+r"(where)
        : "f"(s), "f"(limit), REGISTER(v), "r"(c), "n"(sizeof(number)), "n"(8 * POSITION), "n"(POSITION)
        : "memory");
}

// Write every v whose s is at least `limit`, and its column, to shared memory by rising column.
__device__ __forceinline__ void compact(
    const float (&v)[SLOTS], const float (&s)[SLOTS], float limit, unsigned value, unsigned where, int lane) {
#if VEC == 1
#pragma unroll
    for (int i = 0; i < SLOTS; i++) {
        unsigned kept = __ballot_sync(FULL_WARP, s[i] >= limit);
        unsigned earlier = __popc(kept & ((1u << lane) - 1));
        unsigned to = value + earlier * sizeof(number), at = where + earlier * POSITION;
        put(s[i], limit, narrow(v[i]), column(i, lane), to, at);
        value += __popc(kept) * sizeof(number);
        where += __popc(kept) * POSITION;
    }
#else
    unsigned base = 0;
#pragma unroll
    for (int c = 0; c < CHUNKS; c += 2) {
        unsigned n = 0, total;
#pragma unroll
        for (int i = c * VEC; i < (c + 1) * VEC; i++) {
            tally(s[i], limit, n, 1);
            if (c + 1 < CHUNKS) tally(s[(i + VEC) % SLOTS], limit, n, 1 << 16);
        }
        unsigned earlier = before(n, lane, total);
#pragma unroll
        for (int half = 0; half < 2 && c + half < CHUNKS; half++) {
            unsigned rank = base + (half ? (total & 0xffff) + (earlier >> 16) : earlier & 0xffff);
            unsigned to = value + rank * sizeof(number), at = where + rank * POSITION;
#pragma unroll
            for (int i = (c + half) * VEC; i < (c + half + 1) * VEC; i++)
                put(s[i], limit, narrow(v[i]), column(i, lane), to, at);
        }
        base += (total & 0xffff) + (total >> 16);
    }
#endif
}

// Bisect [low, high): at least K keys are low or above, fewer than K are high or above. Slots of s become 1 where v is
// kept and 0 elsewhere; of equal keys at the limit those in lower columns are kept.
__device__ __forceinline__ void bisect(
    const float (&v)[SLOTS], float (&s)[SLOTS], unsigned low, unsigned high, int lane) {
    while (high - low > 1) {
        unsigned middle = low + (high - low) / 2;
        unsigned n = count([&](int i) { return key(v[i]) >= middle; });
        (n >= K ? low : high) = middle;
    }
    int wanted = K - (int)count([&](int i) { return key(v[i]) > low; });
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        unsigned equal = 0, total;
#pragma unroll
        for (int i = c * VEC; i < (c + 1) * VEC; i++) equal += key(v[i]) == low;
        int rank = before(equal, lane, total);
#pragma unroll
        for (int i = c * VEC; i < (c + 1) * VEC; i++) {
            bool tie = key(v[i]) == low;
            s[i] = key(v[i]) > low || (tie && rank < wanted);
            rank += tie;
        }
        wanted -= total;
    }
}

// Copy BYTES of shared memory to `to`, which is as aligned as BYTES is.
template <int BYTES> __device__ __forceinline__ void copy(void* to, const void* from, int lane) {
    if (BYTES % 4 == 0) {
#pragma unroll
        for (int i = lane; i < BYTES / 4; i += 32) ((unsigned*)to)[i] = ((const unsigned*)from)[i];
    } else {
        for (int i = lane; i < BYTES; i += 32) ((unsigned char*)to)[i] = ((const unsigned char*)from)[i];
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS)
    top_k(const number* __restrict__ x, number* __restrict__ values, position* __restrict__ index, long long rows) {
    __shared__ __align__(16) number kept[WARPS][(K + 7) / 8 * 8];
    __shared__ __align__(16) position columns[WARPS][(K + 15) / 16 * 16];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    unsigned value = __cvta_generic_to_shared(kept[warp]), where = __cvta_generic_to_shared(columns[warp]);
    long long step = (long long)gridDim.x * WARPS;
    for (long long row = (long long)blockIdx.x * WARPS + warp; row < rows; row += step) {
        float v[SLOTS];
        read(v, x + row * D, lane);
        float sum = 0, square = 0;
#pragma unroll
        for (int i = 0; i < SLOTS; i++)
            if (FULL || column(i, lane) < D) sum += v[i], square += v[i] * v[i];
#pragma unroll
        for (int d = 16; d; d /= 2) {
            sum += __shfl_xor_sync(FULL_WARP, sum, d);
            square += __shfl_xor_sync(FULL_WARP, square, d);
        }
        float mean = sum * (1.0f / D);
        float deviation = root(fmaxf(square * (1.0f / D) - mean * mean, 0.0f));
        float limit = mean + QUANTILE * deviation, slope = SLOPE * deviation;
        float low = -INFINITE, high = INFINITE, many = D, few = 0;
        bool plain = square < INFINITE, found = false;
        for (int i = 0; plain && i < TRIES; i++) {
            unsigned n = count([&](int i) { return v[i] >= limit; });
            found = n == K;
            if (found) break;
            float counted = __uint_as_float(n | __float_as_uint(MAGIC)) - MAGIC;
            bool more = n > K;
            low = more ? limit : low;
            many = more ? counted : many;
            high = more ? high : limit;
            few = more ? few : counted;
            float between = low + (high - low) * ((many - K) * reciprocal(many - few));
            bool open = low == -INFINITE || high == INFINITE;
            limit = open ? limit + (counted - K) * slope : between;
            slope *= 1.5f;
        }
        if (found) {
            compact(v, v, limit, value, where, lane);
        } else {
            float s[SLOTS];
            bisect(v, s, plain ? key(low) : 0, plain ? key(high) + (SHIFT > 0) : LARGEST + 1, lane);
            compact(v, s, 0.5f, value, where, lane);
        }
        __syncwarp();
        copy<K * sizeof(number)>(values + row * K, kept[warp], lane);
        copy<K * sizeof(position)>(index + row * K, columns[warp], lane);
        __syncwarp();
    }
}
