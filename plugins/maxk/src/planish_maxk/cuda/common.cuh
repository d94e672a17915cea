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

// Where column c of a row lies on chip: neighbours in groups of ROUNDS share a bank. Kept positions rise along a row,
// so that lanes that take every second or fourth of them meet in a bank less often than with c itself.
#define ROUNDS ((D + 31) / 32)
#define ROW (32 * ROUNDS)
__device__ __forceinline__ int place(int c) { return c % ROUNDS * 32 + c / ROUNDS; }
