// What calls the kernels in the emulation.
#ifdef CHUNK
extern "C" void run_work(int x, int y, int block, const INDEX* indptr, int rows, int4* tasks, int4* chunks, int4* cuts,
                         wide row_cuts, int4* giants, int* totals) {
    fibres::launch(x, y, block, [=] { work(indptr, rows, tasks, chunks, cuts, row_cuts, giants, totals); });
}
#elif defined(TILE)
extern "C" void run_spmm(int x, int y, int block, const int4* tasks, const int4* chunks, const int4* cuts,
                         const int* columns, const float* values, const float* column_scale, const float* row_scale,
                         const float* bias, const char* of, char* out, float* pieces, long long stride,
                         long long out_stride, int width) {
    fibres::launch(x, y, block, [=] {
        spmm(tasks, chunks, cuts, columns, values, column_scale, row_scale, bias, of, out, pieces, stride, out_stride,
             width);
    });
}
extern "C" void run_join(int x, int y, int block, const int4* giants, const float* pieces, const float* row_scale,
                         const float* bias, char* out, long long stride, int width) {
    fibres::launch(x, y, block, [=] { join(giants, pieces, row_scale, bias, out, stride, width); });
}
extern "C" void run_spmm_flat(int x, int y, int block, const int* indptr, const int* columns, const float* values,
                              const float* column_scale, const float* row_scale, const float* bias, const char* of,
                              char* out, long long stride, long long out_stride, int width, int rows) {
    fibres::launch(x, y, block, [=] {
        spmm_flat(indptr, columns, values, column_scale, row_scale, bias, of, out, stride, out_stride, width, rows);
    });
}
#else
extern "C" void run_sddmm(int x, int y, int block, const int4* tasks, const int4* chunks, const int* columns,
                          const float* row_scale, const float* column_scale, const char* grad, const char* of,
                          float* out, long long stride, int width) {
    fibres::launch(x, y, block, [=] {
        sddmm(tasks, chunks, columns, row_scale, column_scale, grad, of, out, stride, width);
    });
}
#endif
