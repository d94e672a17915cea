// What CUDA C++ without headers has no word for.

typedef unsigned int u32;

#define WARP 32
#define FULL 0xffffffffu
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]

// What is read once must not displace features: not kept in L1, first to go in L2.
#define ONCE 0x12f0000000000000ull

__device__ __forceinline__ int once(const int* at) {
    int value;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.s32 %0, [%1], %2;" : "=r"(value) : "l"(at), "l"(ONCE));
    return value;
}

__device__ __forceinline__ float once(const float* at) {
    float value;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.f32 %0, [%1], %2;" : "=f"(value) : "l"(at), "l"(ONCE));
    return value;
}

__device__ __forceinline__ unsigned short once(const unsigned short* at) {
    unsigned short value;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.u16 %0, [%1], %2;" : "=h"(value) : "l"(at), "l"(ONCE));
    return value;
}

__device__ __forceinline__ float from_half(unsigned short half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
}

__device__ __forceinline__ u32 two_halves(float low, float high) {
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

__device__ __forceinline__ u32 two_bfloats(float low, float high) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

