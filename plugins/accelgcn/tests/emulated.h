// CUDA's words in C++, so that kernels run on a CPU: threads of a block are fibres that take turns at every barrier and
// shuffle. Stands in for ptx.cu. One block at a time; misaligned loads and stores abort.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

typedef unsigned int u32;

#define WARP 32
#define FULL 0xffffffffu
#define DYNAMIC_SHARED(type, name) static type name[1 << 20]
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct int4 { int x, y, z, w; };
struct uint4 { u32 x, y, z, w; };
struct uint2 { u32 x, y; };
struct float4 { float x, y, z, w; };
struct float2 { float x, y; };
static int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
static uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static float2 make_float2(float x, float y) { return {x, y}; }

using std::max;
using std::min;

struct Place { int x, y, z; };
static Place threadIdx, blockIdx, blockDim, gridDim;

template <class T>
static void aligned(const T* at) {
    if ((uintptr_t)at % sizeof(T)) {
        std::fprintf(stderr, "misaligned access of %zu bytes\n", sizeof(T));
        std::abort();
    }
}
template <class T>
static T __ldg(const T* at) { aligned(at); return *at; }
template <class T>
static void __stcs(T* at, T value) { aligned(at); *at = value; }
template <class T>
static T once(const T* at) { aligned(at); return *at; }

template <class To, class From>
static To as(From value) {
    To result;
    std::memcpy(&result, &value, sizeof result);
    return result;
}
static float __uint_as_float(u32 bits) { return as<float>(bits); }
static float from_half(unsigned short half) { return (float)as<_Float16>(half); }
static u32 two_halves(float low, float high) {
    return as<unsigned short>((_Float16)low) | (u32)as<unsigned short>((_Float16)high) << 16;
}
static u32 bfloat(float value) {
    const u32 bits = as<u32>(value);
    return value != value ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static u32 two_bfloats(float low, float high) { return bfloat(low) | bfloat(high) << 16; }

namespace fibres {
struct Barrier { int waiting = 0, turn = 0; };
static ucontext_t scheduler;
static std::vector<ucontext_t> contexts;
static std::vector<std::unique_ptr<char[]>> stacks;
static std::vector<char> finished;
static std::vector<uint64_t> offered;
static std::vector<Barrier> warps;
static Barrier block;
static int current, threads;
static std::function<void()> body;

static void others() {
    const int self = current;
    swapcontext(&contexts[self], &scheduler);
    current = threadIdx.x = self;
}
static void meet(Barrier& barrier, int members) {
    const int turn = barrier.turn;
    if (++barrier.waiting == members) {
        barrier.waiting = 0;
        barrier.turn++;
    }
    while (barrier.turn == turn) others();
}
template <class T, class Read>
static auto exchanged(T value, Read read) {
    const int self = current;
    Barrier& warp = warps[self / WARP];
    offered[self] = 0;
    std::memcpy(&offered[self], &value, sizeof value);
    meet(warp, WARP);
    auto result = read(self);
    meet(warp, WARP);
    return result;
}
template <class T>
static T from(int lane) { T value; std::memcpy(&value, &offered[lane], sizeof value); return value; }

static void run() {
    body();
    finished[current] = 1;
    while (true) others();
}
static void launch(int grid_x, int grid_y, int block_size, std::function<void()> kernel) {
    threads = block_size;
    body = kernel;
    gridDim = {grid_x, grid_y, 1};
    blockDim = {threads, 1, 1};
    constexpr size_t stack = 1 << 16;
    while ((int)stacks.size() < threads) stacks.emplace_back(new char[stack]);
    for (int number = 0; number < grid_x * grid_y; number++) {
        blockIdx = {number % grid_x, number / grid_x, 0};
        contexts.assign(threads, ucontext_t());
        finished.assign(threads, 0);
        offered.assign(threads, 0);
        warps.assign(threads / WARP, Barrier());
        block = Barrier();
        for (int t = 0; t < threads; t++) {
            getcontext(&contexts[t]);
            contexts[t].uc_stack.ss_sp = stacks[t].get();
            contexts[t].uc_stack.ss_size = stack;
            makecontext(&contexts[t], run, 0);
        }
        for (int left = threads; left;) {
            left = 0;
            for (int t = 0; t < threads; t++) {
                if (finished[t]) continue;
                current = t;
                threadIdx = {t, 0, 0};
                swapcontext(&scheduler, &contexts[t]);
                left += !finished[t];
            }
        }
    }
}
}  // namespace fibres

static void __syncthreads() { fibres::meet(fibres::block, fibres::threads); }
template <class T>
static T __shfl_sync(u32, T value, int lane, int width = WARP) {
    return fibres::exchanged(value, [=](int self) { return fibres::from<T>(self / width * width + (u32)lane % width); });
}
template <class T>
static T __shfl_xor_sync(u32, T value, int mask) {
    return fibres::exchanged(value, [=](int self) { return fibres::from<T>(self ^ mask); });
}
static bool __any_sync(u32, bool value) {
    return fibres::exchanged(value, [](int self) {
        bool any = false;
        for (int t = self / WARP * WARP; t < self / WARP * WARP + WARP; t++) any |= fibres::from<bool>(t);
        return any;
    });
}
static int atomicAdd(int* at, int value) { return std::exchange(*at, *at + value); }
static int atomicMax(int* at, int value) { return std::exchange(*at, max(*at, value)); }
