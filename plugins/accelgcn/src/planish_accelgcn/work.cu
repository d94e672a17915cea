// Work lists of spmm.cu and sddmm.cu, one chunk a block; what they hold is said in work.py.
//
// Compiled for INDEX (the type of indptr) and CHUNK, SEGMENT, SHORT, ROW_COST.
// Row r begins at indptr[r] + ROW_COST r on a scale of work, and belongs to the chunk of length CHUNK that this lies in.
// A row of more than 2 CHUNK entries leaves at least one chunk in which no row begins: these take its pieces. Places in
// the lists follow from indptr in the same way, with gaps, so that no block has to know what others count.

typedef long long wide;

#define LONGEST_FIRST 32  // classes of tasks by falling length, for those that a warp takes alone and for short ones
#define CLASSES (2 * LONGEST_FIRST)

__device__ __forceinline__ int rounded(int number, int by) { return (number + by - 1) / by; }

__device__ __forceinline__ wide begin(const INDEX* indptr, wide row) { return indptr[row] + ROW_COST * row; }

// The first row that begins at `target` or later.
__device__ int first_row(const INDEX* indptr, int rows, wide target) {
    int low = 0, high = rows;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (begin(indptr, middle) < target)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

__device__ __forceinline__ int class_of(int count, bool alone) {
    if (alone) return LONGEST_FIRST - 1 - max(count - 1, 0) * LONGEST_FIRST / SEGMENT;
    return LONGEST_FIRST + min(SHORT - count, LONGEST_FIRST - 1);
}

// The segments of a row: how many, and how long all but the last are.
struct Cut {
    int parts, length;
    __device__ Cut(int degree) {
        const int wanted = max(rounded(degree, SEGMENT), 1);
        length = max(rounded(rounded(degree, wanted), 32) * 32, 32);
        parts = max(rounded(degree, length), 1);
    }
};

__device__ void record(int4* chunks, wide base, wide first_task, int whole, int all, wide first_cut, int cuts,
                       int piece) {
    chunks[2 * blockIdx.x] = make_int4((int)base, (int)(base >> 32), (int)first_task, whole);
    chunks[2 * blockIdx.x + 1] = make_int4(all, (int)first_cut, cuts, piece);
}

// A piece of the gigantic row before `next`, if there is one; by one thread.
__device__ void piece_of(const INDEX* indptr, int next, int4* tasks, int4* chunks, int4* cuts, wide row_cuts,
                         int4* giants, int* totals) {
    const int row = next - 1;
    const int degree = row < 0 ? 0 : (int)(indptr[next] - indptr[row]);
    if (degree <= 2 * CHUNK) return record(chunks, 0, 0, 0, 0, 0, 0, -1);
    const int before = (int)(begin(indptr, row) / CHUNK), after = (int)(begin(indptr, next) / CHUNK);
    const int length = rounded(rounded(degree, after - before - 1), SEGMENT) * SEGMENT;
    const int number = blockIdx.x - before - 1, pieces = rounded(degree, length);
    if (number >= pieces) return record(chunks, 0, 0, 0, 0, 0, 0, -1);
    if (number == 0) giants[atomicAdd(totals + 1, 1)] = make_int4(row, before + 1, pieces, degree);
    const int skipped = number * length, count = min(length, degree - skipped), parts = rounded(count, SEGMENT);
    const wide base = indptr[row] + skipped, first_task = row + indptr[row] / SEGMENT + skipped / SEGMENT;
    for (int part = 0; part < parts; part++)
        tasks[first_task + part] = make_int4(row, part * SEGMENT, min(SEGMENT, count - part * SEGMENT), part);
    const wide cut = row_cuts + blockIdx.x;
    cuts[cut] = make_int4(row, 0, parts, degree);
    atomicMax(totals, parts);
    record(chunks, base, first_task, parts, parts, cut, 1, blockIdx.x);
}

// row_cuts: places in `cuts` for rows; behind them each chunk has one for a piece.
// totals: the most slots of a chunk; gigantic rows. Not written, and may be null, where no row is cut.
extern "C" __global__ void work(const INDEX* indptr, int rows, int4* tasks, int4* chunks, int4* cuts, wide row_cuts,
                                int4* giants, int* totals) {
    __shared__ int bounds[2], place[CLASSES + 1], slots, cut_rows;
    if (threadIdx.x < 2) bounds[threadIdx.x] = first_row(indptr, rows, (wide)CHUNK * (blockIdx.x + threadIdx.x));
    for (int c = threadIdx.x; c <= CLASSES; c += blockDim.x) place[c] = 0;
    if (threadIdx.x == 0) slots = cut_rows = 0;
    __syncthreads();
    const int start = bounds[0], end = bounds[1];
    if (start == end) {
        if (threadIdx.x == 0) piece_of(indptr, start, tasks, chunks, cuts, row_cuts, giants, totals);
        return;
    }

    // How many tasks of each class, then where each class begins.
    for (int row = start + threadIdx.x; row < end; row += blockDim.x) {
        const int degree = (int)(indptr[row + 1] - indptr[row]);
        if (degree > 2 * CHUNK) continue;
        const Cut cut(degree);
        const bool alone = cut.parts > 1 || degree > SHORT;
        if (cut.parts > 1) atomicAdd(place + 1 + class_of(cut.length, true), cut.parts - 1);
        atomicAdd(place + 1 + class_of(degree - (cut.parts - 1) * cut.length, alone), 1);
    }
    __syncthreads();
    const wide base = indptr[start], first_task = start + base / SEGMENT, first_cut = base / SEGMENT;
    if (threadIdx.x == 0) {
        for (int c = 0; c < CLASSES; c++) place[c + 1] += place[c];
        const int whole = place[LONGEST_FIRST], all = place[CLASSES];
        record(chunks, base, first_task, whole, all, first_cut, 0, -1);
    }
    __syncthreads();
    for (int row = start + threadIdx.x; row < end; row += blockDim.x) {
        const int degree = (int)(indptr[row + 1] - indptr[row]);
        if (degree > 2 * CHUNK) continue;
        const Cut cut(degree);
        const bool alone = cut.parts > 1 || degree > SHORT;
        int slot = -1;
        if (cut.parts > 1) {
            slot = atomicAdd(&slots, cut.parts);
            cuts[first_cut + atomicAdd(&cut_rows, 1)] = make_int4(row, slot, cut.parts, degree);
        }
        const int at = (int)(indptr[row] - base);
        for (int part = 0; part < cut.parts; part++) {
            const int skipped = part * cut.length, count = min(cut.length, degree - skipped);
            tasks[first_task + atomicAdd(place + class_of(count, alone), 1)] =
                make_int4(row, at + skipped, count, cut.parts > 1 ? slot + part : -1);
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        chunks[2 * blockIdx.x + 1].z = cut_rows;
        if (slots) atomicMax(totals, slots);
    }
}
