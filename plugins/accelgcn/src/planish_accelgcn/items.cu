// Elements of x: loading them in words, unpacking to fp32, packing, and reading once.
//   STORAGE  0 fp32, 1 fp16, 2 bf16    VEC  elements that a lane loads at once    WIDE  64-bit offsets

#if STORAGE == 0
typedef float item;
#else
typedef unsigned short item;
#endif

#define BYTES (VEC * (int)sizeof(item))

struct Parts { u32 word[(BYTES + 3) / 4]; };

// Offsets in bytes: 32 bits are enough for all but the largest graphs and take half the registers.
#if WIDE
typedef long long offset;
#else
typedef u32 offset;
#endif

template <class T>
__device__ __forceinline__ const T* shifted(const T* base, offset bytes) {
    return (const T*)((const char*)base + bytes);
}

__device__ __forceinline__ Parts load(const char* at) {
    Parts parts;
#if VEC * 4 == 16 && STORAGE == 0 || VEC == 8
    uint4 v = __ldg((const uint4*)at);
    parts.word[0] = v.x; parts.word[1] = v.y; parts.word[2] = v.z; parts.word[3] = v.w;
#elif VEC == 2 && STORAGE == 0 || VEC == 4
    uint2 v = __ldg((const uint2*)at);
    parts.word[0] = v.x; parts.word[1] = v.y;
#elif STORAGE == 0 || VEC == 2
    parts.word[0] = __ldg((const u32*)at);
#else
    parts.word[0] = __ldg((const unsigned short*)at);
#endif
    return parts;
}

__device__ __forceinline__ float widened(u32 word, int half) {
#if STORAGE == 1
    return from_half((unsigned short)(word >> (16 * half)));
#else
    return __uint_as_float(half ? word & 0xffff0000u : word << 16);
#endif
}

__device__ __forceinline__ float unpacked(const Parts& parts, int i) {
#if STORAGE == 0
    return __uint_as_float(parts.word[i]);
#else
    return widened(parts.word[i / 2], i % 2);
#endif
}

__device__ __forceinline__ u32 packed(float low, float high) {
    return STORAGE == 1 ? two_halves(low, high) : two_bfloats(low, high);
}

__device__ __forceinline__ void store(char* at, const float* value) {
#if STORAGE == 0
#if VEC == 4
    __stcs((float4*)at, make_float4(value[0], value[1], value[2], value[3]));
#elif VEC == 2
    __stcs((float2*)at, make_float2(value[0], value[1]));
#else
    __stcs((float*)at, value[0]);
#endif
#elif VEC == 8
    __stcs((uint4*)at, make_uint4(packed(value[0], value[1]), packed(value[2], value[3]), packed(value[4], value[5]),
                                  packed(value[6], value[7])));
#elif VEC == 4
    __stcs((uint2*)at, make_uint2(packed(value[0], value[1]), packed(value[2], value[3])));
#elif VEC == 2
    __stcs((u32*)at, packed(value[0], value[1]));
#else
    *(unsigned short*)at = (unsigned short)packed(value[0], 0.f);
#endif
}

