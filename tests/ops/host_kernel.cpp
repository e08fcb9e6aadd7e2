// The CUDA kernel as a host library: -DKERNEL_SOURCE="\"path/to/grouped_argmin.cu\"". Returns 0 when every thread ran to its end.
#include "host_shim.h"
// (the shim first: it defines the keywords the kernel is written in)
#include KERNEL_SOURCE

extern "C" int run_float(unsigned grid_x, unsigned grid_y, unsigned threads, const float *latent, const float *codebook, int positions,
                         int area, int rows, int dim, int *codes) {
    return host::launch({grid_x, grid_y, 1}, {threads, 1, 1},
                        [=] { grouped_argmin_float(latent, codebook, positions, area, rows, dim, codes); })
               ? 0
               : 1;
}

extern "C" int run_half(unsigned grid_x, unsigned grid_y, unsigned threads, const void *latent, const float *codebook, int positions,
                        int area, int rows, int dim, int *codes) {
    return host::launch({grid_x, grid_y, 1}, {threads, 1, 1},
                        [=] {
                            grouped_argmin_half(static_cast<const Half *>(latent), codebook, positions, area, rows, dim, codes);
                        })
               ? 0
               : 1;
}
