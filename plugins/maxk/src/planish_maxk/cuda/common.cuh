// What the kernels of MaxK share. Built by NVRTC for one case each: no headers, all sizes are macros.
//
// NUMBER    0: fp32, 1: fp16, 2: bf16, as features are stored; all arithmetic is fp32
// POSITION  bytes of a position in a row: 1 or 2
// INDEX     bytes of a node number: 4 or 8
// D, K      columns of a row, entries kept of each

#define FULL_WARP 0xffffffffu
#define INFINITE __int_as_float(0x7f800000)

#if NUMBER == 0
typedef float number;
__device__ __forceinline__ float wide(number x) { return x; }
__device__ __forceinline__ number narrow(float x) { return x; }
#else
typedef unsigned short number;
#if NUMBER == 1
__device__ __forceinline__ float wide(number x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
__device__ __forceinline__ number narrow(float x) {
    number y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
#else
__device__ __forceinline__ float wide(number x) { return __uint_as_float((unsigned)x << 16); }
__device__ __forceinline__ number narrow(float x) {
    number y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
#endif
#endif

#if POSITION == 1
typedef unsigned char position;
#else
typedef unsigned short position;
#endif

#if INDEX == 8
typedef long long node;
#else
typedef int node;
#endif

// N neighbours in memory, moved by one instruction.
template <typename T, int N> struct __align__(sizeof(T) * N) Pack {
    T at[N];
};

template <int N, typename T> __device__ __forceinline__ Pack<T, N> load(const T* from) {
    return *reinterpret_cast<const Pack<T, N>*>(from);
}

// The same for what is not read again soon: it should not take the place in the cache of what is gathered.
template <int BYTES> struct Word;
template <> struct Word<4> { typedef int type; };
template <> struct Word<8> { typedef uint2 type; };
template <> struct Word<16> { typedef uint4 type; };

template <int N, typename T> __device__ __forceinline__ Pack<T, N> load_once(const T* from) {
    typedef typename Word<sizeof(T) * N>::type word;
    word got = __ldcs(reinterpret_cast<const word*>(from));
    return *reinterpret_cast<Pack<T, N>*>(&got);
}

template <int N, typename T> __device__ __forceinline__ void store_once(T* to, Pack<T, N> what) {
    typedef typename Word<sizeof(T) * N>::type word;
    __stcs(reinterpret_cast<word*>(to), *reinterpret_cast<word*>(&what));
}

// Where column c of a row lies on chip: neighbours in groups of ROUNDS share a bank. Kept positions rise along a row,
// so that lanes that take every second or fourth of them meet in a bank less often than with c itself.
#define ROUNDS ((D + 31) / 32)
#define ROW (32 * ROUNDS)
__device__ __forceinline__ int place(int c) { return c % ROUNDS * 32 + c / ROUNDS; }

#define BYTE_PLACES (POSITION == 1 && D == ROW && (ROUNDS & (ROUNDS - 1)) == 0)

#if BYTE_PLACES
// The places of N positions in rows of 32, 64, 128 or 256 columns, a byte each, all at once.
template <int N> __device__ __forceinline__ unsigned places_in_bytes(const Pack<position, N>& p) {
    unsigned all;
    if (N == 4) all = *reinterpret_cast<const unsigned*>(&p);
    else if (N == 2) all = *reinterpret_cast<const unsigned short*>(&p);
    else all = p.at[0];
    return (all / ROUNDS & 0x01010101u * (255 / ROUNDS)) | (all & 0x01010101u * (ROUNDS - 1)) * 32;
}
#endif

template <int N> __device__ __forceinline__ void places(const Pack<position, N>& p, int (&at)[N]) {
#if BYTE_PLACES
    unsigned all = places_in_bytes(p);
#pragma unroll
    for (int i = 0; i < N; i++) at[i] = all >> 8 * i & 255;
#else
#pragma unroll
    for (int i = 0; i < N; i++) at[i] = place(p.at[i]);
#endif
}

// A dense row onto the chip, by a warp.
__device__ __forceinline__ void stage(float* to, const number* __restrict__ from, int lane) {
#if D % 4 == 0
    for (int c = 4 * lane; c < D; c += 128) {
        Pack<number, 4> got = load_once<4>(from + c);
#pragma unroll
        for (int i = 0; i < 4; i++) to[place(c + i)] = wide(got.at[i]);
    }
#else
    for (int c = lane; c < D; c += 32) to[place(c)] = wide(from[c]);
#endif
}

// Neighbours in memory += what, atomically; `to` is as aligned as all of them.
template <int N> __device__ __forceinline__ void add(float* to, const float (&what)[N]) {
#if __CUDA_ARCH__ >= 900
    if (N == 4) {
        asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(what[0]), "f"(what[1 % N]),
                     "f"(what[2 % N]), "f"(what[3 % N]) : "memory");
        return;
    }
    if (N == 2) {
        asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(what[0]), "f"(what[1 % N]) : "memory");
        return;
    }
#endif
#pragma unroll
    for (int i = 0; i < N; i++) atomicAdd(to + i, what[i]);
}
