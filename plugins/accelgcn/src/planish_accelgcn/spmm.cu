// y = A x for a sparse A and dense x, both row-major; see planish_accelgcn.work for the work lists.
//
// Compiled for one setting of
//   STORAGE  0 fp32, 1 fp16, 2 bf16 (sums are fp32)    VEC     elements that a lane loads at once
//   LANES    lanes side by side on one entry           UNROLL  entries in flight a group of lanes
//   THREADS  of a block                                BLOCKS  that a multiprocessor shall hold
//   VALUES (2: in x's type), COLUMN_SCALE, ROW_SCALE (2: mean), BIAS, RELU  what is there
// A block has one chunk of consecutive rows and TILE columns. Chunks are the fast axis of the grid, so that all of x
// that is read at a time is TILE columns wide and stays in the L2 cache; the rows of a chunk share the L1 cache.

#define TILE (LANES * VEC)

#if VALUES == 2
typedef item weight_type;
#else
typedef float weight_type;
#endif

struct Sum { float value[VEC]; };

// Everything that does not change from row to row.
struct Job {
    const char* x;        // first element of the tile
    const int* columns;
    const weight_type* values;
    const float* column_scale;
    offset stride;        // bytes from row to row of x
    int within;           // this lane among the LANES of an entry
    int width;            // columns from the start of the tile to the end of x
};

// Adds entries j, j + SIDE, ... of the GROUP entries that a group of lanes holds, DEEP gathers in flight.
// PART: only the first `live` of them exist.
template <int GROUP, int DEEP, bool PART>
__device__ __forceinline__ void add_some(const Job& job, offset place, float scale, int j, int live, Sum& sum) {
    constexpr int SIDE = GROUP / LANES;
    Parts parts[DEEP];
    float scales[DEEP];
#pragma unroll
    for (int u = 0; u < DEEP; u++) {
        const int k = j + u * SIDE;
        const offset at = __shfl_sync(FULL, place, k, GROUP) + job.within * BYTES;
#if VALUES || COLUMN_SCALE
        scales[u] = __shfl_sync(FULL, scale, k, GROUP);
#else
        scales[u] = 1.f;
#endif
        if (PART || GUARD) parts[u] = Parts();
        if ((!PART || k < live) && (!GUARD || job.within * VEC < job.width)) parts[u] = load(job.x + at);
    }
#pragma unroll
    for (int u = 0; u < DEEP; u++)
#pragma unroll
        for (int i = 0; i < VEC; i++) sum.value[i] = fmaf(scales[u], unpacked(parts[u], i), sum.value[i]);
}

// A batch of entries that a group of lanes holds, one a lane, on its way while the one before is worked on.
struct Batch {
    int column;
    float weight;
};

__device__ __forceinline__ void fetch(const Job& job, offset entry, bool live, Batch& batch) {
    if (!live) return;
    batch.column = once(shifted(job.columns, entry * 4));
#if VALUES == 1
    batch.weight = once(shifted(job.values, entry * 4));
#elif VALUES == 2
    batch.weight = widened(once(shifted(job.values, entry * 2)), 0);
#endif
}

// Adds `count` entries from `first` on, for a group of GROUP lanes: LANES on each entry, GROUP / LANES entries at once.
// `longest` is the largest count in the warp, so that its groups stay together.
template <int GROUP>
__device__ __forceinline__ void add_entries(const Job& job, offset first, int count, int longest, Sum& sum) {
    constexpr int SIDE = GROUP / LANES;
    constexpr int DEEP = UNROLL < LANES ? UNROLL : LANES;
    const int lane = threadIdx.x % GROUP, side = lane / LANES;
    Batch batch = {0, 0.f};
    fetch(job, first + lane, lane < count, batch);
#pragma unroll 1
    for (int start = 0; start < longest; start += GROUP) {
        const offset place = batch.column * job.stride;
        float scale = VALUES ? batch.weight : 1.f;
#if COLUMN_SCALE
        scale *= __ldg(job.column_scale + batch.column);
#endif
        const int after = start + GROUP;
        fetch(job, first + after + lane, after + lane < count, batch);
        if (GROUP == WARP && after <= count) {
#pragma unroll 1
            for (int j = side; j < GROUP; j += SIDE * DEEP) add_some<GROUP, DEEP, false>(job, place, scale, j, 0, sum);
        } else {
            const int live = count - start, rounds = min(longest - start, GROUP);
#pragma unroll 1
            for (int j = 0; j < rounds; j += SIDE * DEEP)
                add_some<GROUP, DEEP, true>(job, place, scale, j + side, live, sum);
        }
    }
#pragma unroll
    for (int step = LANES; step < GROUP; step *= 2)
#pragma unroll
        for (int i = 0; i < VEC; i++) sum.value[i] += __shfl_xor_sync(FULL, sum.value[i], step);
}

// The largest count among the groups of a warp.
template <int GROUP>
__device__ __forceinline__ int longest_of(int count) {
#pragma unroll
    for (int step = GROUP; step < WARP; step *= 2) count = max(count, __shfl_xor_sync(FULL, count, step));
    return count;
}

struct Finish {
    const float* row_scale;
    const float* bias;
    char* out;
    offset stride;
    int column;  // first column of the tile
};

// Stores this lane's columns of a row.
__device__ __forceinline__ void finish(const Finish& to, int row, int degree, const Job& job, Sum& sum) {
    if (GUARD && job.within * VEC >= job.width) return;
    float scale = 1.f;
#if ROW_SCALE == 1
    scale = __ldg(to.row_scale + row);
#elif ROW_SCALE == 2
    scale = 1.f / max(degree, 1);
#endif
    const int column = to.column + job.within * VEC;
#pragma unroll
    for (int i = 0; i < VEC; i++) {
        float value = sum.value[i] * scale;
#if BIAS
        value += __ldg(to.bias + column + i);
#endif
#if RELU
        value = value > 0.f || value != value ? value : 0.f;
#endif
        sum.value[i] = value;
    }
    store((char*)shifted(to.out, row * to.stride + column * (int)sizeof(item)), sum.value);
}

// The task of this lane at a turn of its warp; row -1 behind the last.
__device__ __forceinline__ int4 task_at(const int4* tasks, const volatile int* chunk, int turn) {
    const int whole = chunk[3];
    const int short_ones = (turn - whole) * (WARP / LANES) + threadIdx.x % WARP / LANES;
    const int number = turn < whole ? turn : whole + short_ones;
    return number < chunk[4] ? __ldg(tasks + chunk[2] + number) : make_int4(-1, 0, 0, -1);
}

// tasks: int4 (row, first entry after the chunk's, entries, slot or -1), long ones first, in each chunk.
// chunks: 8 ints (first entry, 64 bits; first task; tasks of a warp each; tasks in all; first cut row; cut rows;
// piece). cuts: int4 (row, first slot, slots, degree): rows whose sum is put together from slots in shared memory. In a
// chunk that is a piece of a gigantic row (piece >= 0) that sum goes to `pieces`, [piece, width] fp32, and `join` adds
// them up.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) spmm(
    const int4* tasks, const int4* chunks, const int4* cuts, const int* columns, const weight_type* values,
    const float* column_scale, const float* row_scale, const float* bias, const char* x, char* out, float* pieces,
    long long x_stride, long long out_stride, int width) {
    DYNAMIC_SHARED(float, slots);
    __shared__ int next;
    __shared__ volatile int chunk[8];  // read again where it is needed, so that it holds no registers
    const int lane = threadIdx.x % WARP;
    if (threadIdx.x < 8) chunk[threadIdx.x] = __ldg((const int*)(chunks + 2 * blockIdx.x) + threadIdx.x);
    if (threadIdx.x == 0) next = THREADS / WARP;
    Job job;
    job.within = lane % LANES;
    job.width = width - blockIdx.y * TILE;
    job.x = x + (long long)blockIdx.y * TILE * sizeof(item);
    job.columns = columns;
    job.values = values;
    job.column_scale = column_scale;
    job.stride = (offset)x_stride;
    const Finish to = {row_scale, bias, out, (offset)out_stride, (int)blockIdx.y * TILE};
    __syncthreads();
#if WIDE
#define BASE ((u32)chunk[0] | (long long)chunk[1] << 32)
#else
#define BASE (u32)chunk[0]
#endif

    int turn = threadIdx.x / WARP;
    int4 task = task_at(tasks, chunk, turn);
#pragma unroll 1
    while (__any_sync(FULL, task.x >= 0)) {
        Sum sum = {};
        const bool alone = turn < chunk[3];
        if (lane == 0) turn = atomicAdd(&next, 1);
        turn = __shfl_sync(FULL, turn, 0);
        const int4 after = task_at(tasks, chunk, turn);  // on its way while this one is worked on
        if (alone) {
            add_entries<WARP>(job, BASE + task.y, task.z, task.z, sum);
            if (lane < LANES) {
                if (task.w < 0)
                    finish(to, task.x, task.z, job, sum);
                else
                    for (int i = 0; i < VEC; i++) slots[task.w * TILE + job.within * VEC + i] = sum.value[i];
            }
        } else {
            add_entries<LANES>(job, BASE + task.y, task.z, longest_of<LANES>(task.z), sum);
            if (task.x >= 0) finish(to, task.x, task.z, job, sum);
        }
        task = after;
    }

    const int rows = chunk[6], piece = chunk[7];
    if (rows == 0) return;
    __syncthreads();
#pragma unroll 1
    for (int group = threadIdx.x / LANES; group < rows; group += THREADS / LANES) {
        const int4 cut = __ldg(cuts + chunk[5] + group);
        Sum sum = {};
#pragma unroll 1
        for (int s = 0; s < cut.z; s++)
            for (int i = 0; i < VEC; i++) sum.value[i] += slots[(cut.y + s) * TILE + job.within * VEC + i];
        if (piece < 0) {
            finish(to, cut.x, cut.w, job, sum);
        } else {
            float* at = pieces + (long long)piece * width + to.column;
            for (int i = 0; i < VEC; i++) {
                const int column = job.within * VEC + i;
                if (!GUARD || column < job.width) at[column] = sum.value[i];
            }
        }
    }
}

// giants: int4 (row, first piece, pieces, degree), a block each; threads run over columns.
extern "C" __global__ void join(const int4* giants, const float* pieces, const float* row_scale, const float* bias,
                                char* out, long long out_stride, int width) {
    const int4 giant = giants[blockIdx.x];
    for (int column = blockIdx.y * blockDim.x + threadIdx.x; column < width; column += gridDim.y * blockDim.x) {
        float value = 0.f;
        for (int p = 0; p < giant.z; p++) value += pieces[(long long)(giant.y + p) * width + column];
#if ROW_SCALE == 1
        value *= row_scale[giant.x];
#elif ROW_SCALE == 2
        value *= 1.f / giant.w;
#endif
#if BIAS
        value += bias[column];
#endif
#if RELU
        value = value > 0.f || value != value ? value : 0.f;
#endif
        item* at = (item*)(out + giant.x * out_stride) + column;
#if STORAGE == 0
        *at = value;
#else
        *at = (item)packed(value, 0.f);
#endif
    }
}

// The same product without work lists, a warp a row in row order: for small graphs with short rows,
// where a launch and a few dependent loads are most of the time.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) spmm_flat(
    const int* indptr, const int* columns, const weight_type* values, const float* column_scale, const float* row_scale,
    const float* bias, const char* x, char* out, long long x_stride, long long out_stride, int width, int rows) {
    const int tile = blockIdx.y, lane = threadIdx.x % WARP;
    const int row = (int)((blockIdx.x * (long long)THREADS + threadIdx.x) / WARP);
    Job job;
    job.within = lane % LANES;
    job.width = width - tile * TILE;
    job.x = x + (long long)tile * TILE * sizeof(item);
    job.columns = columns;
    job.values = values;
    job.column_scale = column_scale;
    job.stride = (offset)x_stride;
    int first = 0, count = 0;
    if (row < rows) {
        first = __ldg(indptr + row);
        count = __ldg(indptr + row + 1) - first;
    }
    Sum sum = {};
    add_entries<WARP>(job, first, count, count, sum);
    const Finish to = {row_scale, bias, out, (offset)out_stride, tile * TILE};
    if (row < rows && lane < LANES) finish(to, row, count, job, sum);
}
