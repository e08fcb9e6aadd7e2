// GroupedArgmin on NVIDIA GPUs: for every position and group, the index of the codebook row with the largest
// inner product; float32 accumulation whatever the latent's type; ties go to the lowest index.
//
//   latent   float or half [B, G*d, h, w]     codebook  float [G, K, d], unit rows     codes  int32 [B, G, h, w]
//
// Launch: 256 threads; grid.x = any number of blocks, best ceil(positions / 128); grid.y = G; no dynamic shared memory.
// `positions` is B*h*w, `area` is h*w; 1 <= d <= 32; any K >= 1. One launch, no workspace. Offsets are 64-bit.
//
// How: scores come from tensor cores (mma.sync, half times half, float32 sums), which cannot take float32 values, so each value goes
// in as two halves, x = hi + lo, and a score is z.hi c.hi + z.hi c.lo + z.lo c.hi; what is left out is below 2^-22 of |z||c|. Rows are scaled
// by 2^12, float slices by the power of two that brings their largest value to 2^13, so that no lo is lost among float16's
// subnormals; half latents are their own hi, and have no lo. One m16n8k16 takes [z.hi z.hi] [c.hi c.lo] for d = 8, and all three
// products, [z.hi z.lo z.hi z.lo] [c.hi c.hi c.lo 0], for d = 4. Equal rows get equal bits wherever they stand.
// No score is kept, nor an index per score: a thread keeps the largest score of each 16 rows, and which 16 they were. The
// 16 rows that win are scored once more in float32, and the first of the largest is the code.
//
// What bounds it: the maximum, 4 of them per mma and thread, at half the rate of other instructions (16 lanes a clock and SM
// quarter). An mma of 128 scores costs 8 clocks for its maxima and about 3 for keeping track (counted in the machine code for sm_90);
// the tensor cores need 4 to 8 for it (mma.sync is said to reach about 60 % of Hopper's peak), side by side with the maxima, and some
// 4 more for the m16n8k8 that float latents with d = 8 take. H200, 132 SMs x 4 quarters at 1.75 GHz, 14,400 positions:
//   G x K x d = 8 x 2048 x 4:  1.84e6 mma x 11 clocks = 22 us;    4 x 8192 x 8:  3.69e6 mma = 44 us, float latents no more
// (bounds from this count, not measurements; whole waves of blocks and splitting the rows, a fifth, come on top). Float32 multiply-adds
// instead of tensor cores would take 43 and 155 us. Memory: 1.8 MB of latents, and the codebook from L2 once per 128 positions.
//
// The file needs no header, so that NVRTC compiles it with nothing installed beside it, and it compiles as C++ on a host
// whose shim defines the CUDA keywords and the few intrinsics used.

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define HAS_MMA_K16 (__CUDA_ARCH__ >= 800)

__device__ __forceinline__ float half_bits_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ unsigned short float_to_half_bits(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// sums [16 x 8] += a [16 x 8] b [8 x 8], spread over a warp as PTX lays fragments out.
__device__ __forceinline__ void mma_k8(float (&sums)[4], unsigned a0, unsigned a1, unsigned b0) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(a1), "r"(b0));
}

#if HAS_MMA_K16
// sums [16 x 8] += a [16 x 16] b [16 x 8].
__device__ __forceinline__ void mma_k16(float (&sums)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif
#endif

namespace {

enum : int {
    kThreads = 256,
    kWarps = kThreads / 32,
    kColumns = 4,                 // the warps of a block: 4 columns share out its positions,
    kShares = kWarps / kColumns,  // 2 warps of each the rows
    kChunk = 64,                  // rows that a warp takes at a time: 8 mma wide, 16 rows for each lane of a quad
    kLaneRows = kChunk / 4,
    kTileBytes = 16384,   // codebook rows at a time
    kMaxPositions = 128,  // of one block
    kLatentFloats = 2048,
};

constexpr float kRowScale = 4096.0f;

struct __align__(8) Halves { unsigned hi, lo; };  // two values, each as hi + lo; the first in the lower 16 bits

struct Half { unsigned short bits; };

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(Half value) { return half_bits_to_float(value.bits); }

// What a slice is multiplied by, from its largest magnitude.
__device__ __forceinline__ float slice_scale(const Half *, float) { return 1.0f; }
__device__ __forceinline__ float slice_scale(const float *, float largest) {
    const int exponent = 267 - (__float_as_int(largest) >> 23);
    return __int_as_float((exponent < 254 ? exponent : 254) << 23);
}

template <typename Latent> constexpr bool kHasLow = true;
template <> constexpr bool kHasLow<Half> = false;

__device__ __forceinline__ Halves split(float first, float second) {
    const unsigned short a = float_to_half_bits(first);
    const unsigned short b = float_to_half_bits(second);
    const unsigned short c = float_to_half_bits(first - half_bits_to_float(a));
    const unsigned short d = float_to_half_bits(second - half_bits_to_float(b));
    return {a | static_cast<unsigned>(b) << 16, c | static_cast<unsigned>(d) << 16};
}

struct Shared {
    union {
        Halves tile[kTileBytes / sizeof(Halves)];   // codebook rows as mma wants them: [8 rows][8 dims][lane]
        struct {
            float best[kShares * 4][kMaxPositions];   // of every lane that looked at a position
            int block[kShares * 4][kMaxPositions];
        } found;
        float scores[kLaneRows][kMaxPositions + 1];  // of the winning rows; the odd width keeps banks apart
    };
    float latent[kLatentFloats];     // [position of the block][dim], scaled
    int block[kMaxPositions];        // the first block of 16 rows that holds a position's largest score
};

// kDim: d rounded up to 4, 8, 16 or 32; the added dimensions are zero in latents and rows and change no score.
template <int kDim, typename Latent>
__device__ __forceinline__ void scan_group(const Latent *latent, const float *codebook, int positions, int area, int rows, int dim,
                                           int *codes, Shared &shared) {
    constexpr int kSteps = kDim <= 8 ? 1 : kDim / 8;  // of 8 dims
    constexpr int kTiles = kDim <= 8 ? 2 : 1;         // of 16 positions, of one warp
    constexpr int kPositions = kColumns * kTiles * 16;
    constexpr int kTileChunks = kTileBytes / (kChunk * 32 * kSteps);
    static_assert(kPositions <= kMaxPositions && kPositions <= kThreads, "one thread a position");
    static_assert(kPositions * kDim <= kLatentFloats, "latents of a block must fit");
    static_assert(kTileChunks >= kShares, "every warp must have rows of a tile");

    const int thread = static_cast<int>(threadIdx.x);
    const int lane = thread % 32;
    const int quad = lane / 4;  // mma's names: which row of a, which column of b
    const int member = lane % 4;
    const int warp = thread / 32;
    const int share = warp % kShares;
    const int column = warp / kShares;
    const long long group = blockIdx.y;
    const long long groups = gridDim.y;
    const float *group_rows = codebook + group * rows * dim;

    for (long long first = static_cast<long long>(blockIdx.x) * kPositions; first < positions;
         first += static_cast<long long>(gridDim.x) * kPositions) {
        // Latents. A slice with a NaN or an infinity is taken as all zeros: every score ties and index 0 wins, which is what
        // the contract asks for.
        __syncthreads();
        if (thread < kPositions) {
            const long long position = first + thread;
            const bool inside = position < positions;
            const long long image = inside ? position / area : 0;
            const Latent *source = latent + (image * groups + group) * dim * area + (inside ? position - image * area : 0);
            float *slice = shared.latent + thread * kDim;
            float largest = 0.0f;
            float zero_if_finite = 0.0f;
#pragma unroll 4
            for (int i = 0; i < kDim; ++i) {
                const float z = inside && i < dim ? to_float(source[static_cast<long long>(i) * area]) : 0.0f;
                slice[i] = z;
                largest = fmaxf(largest, fabsf(z));
                zero_if_finite += z * 0.0f;
            }
            const float scale = slice_scale(latent, largest);
            for (int i = 0; i < kDim; ++i) slice[i] = zero_if_finite == 0.0f ? slice[i] * scale : 0.0f;
        }
        __syncthreads();
        unsigned hi[kTiles][kSteps][2], lo[kTiles][kSteps][2];
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const float *z = shared.latent + ((column * kTiles + tile) * 16 + 8 * half + quad) * kDim + (8 * step + 2 * member) % kDim;
                    const Halves parts = split(z[0], z[1]);
                    hi[tile][step][half] = kDim == 4 && member >= 2 ? parts.lo : parts.hi;
                    lo[tile][step][half] = parts.lo;
                }
            }
        }

        // Scan: the warps of a column take the chunks of a tile in turn, so each meets its chunks in rising order.
        float best[kTiles][2];
        int best_chunk[kTiles][2];
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
            best[tile][0] = best[tile][1] = -__int_as_float(0x7f800000);
            best_chunk[tile][0] = best_chunk[tile][1] = 0;
        }
        for (int tile_start = 0; tile_start < rows; tile_start += kTileChunks * kChunk) {
            const int left = rows - tile_start;
            const int chunks = left < kTileChunks * kChunk ? (left + kChunk - 1) / kChunk : kTileChunks;
            __syncthreads();
            // Rows are dealt out so that each lane of a quad meets 16 rows that follow each other. The last chunk is filled up with
            // copies of the last row: they tie with it at a higher index.
#pragma unroll 2
            for (int chunk = 0; chunk < chunks; ++chunk) {
                const int row = tile_start + chunk * kChunk + kLaneRows * (quad / 2) + 2 * warp + quad % 2;
#pragma unroll
                for (int step = 0; step < kSteps; ++step) {
                    const int i = (8 * step + 2 * member) % kDim;
                    const float *source = group_rows + static_cast<long long>(row < rows ? row : rows - 1) * dim + i;
                    Halves parts = split(i < dim ? kRowScale * source[0] : 0.0f, i + 1 < dim ? kRowScale * source[1] : 0.0f);
                    if (kDim == 4 && member >= 2) parts.lo = 0;
                    shared.tile[((chunk * 8 + warp) * kSteps + step) * 32 + lane] = parts;
                }
            }
            __syncthreads();
            for (int chunk = share; chunk < chunks; chunk += kShares) {
                const Halves *row = shared.tile + chunk * kSteps * 256 + lane;
                float largest[kTiles][2];
#pragma unroll
                for (int tile = 0; tile < kTiles; ++tile) largest[tile][0] = largest[tile][1] = -__int_as_float(0x7f800000);
#pragma unroll kDim <= 8 ? 2 : 1
                for (int eight = 0; eight < 8; ++eight) {
                    float sums[kTiles][4] = {};
#pragma unroll
                    for (int step = 0; step < kSteps; ++step) {
                        const Halves c = row[(eight * kSteps + step) * 32];
#pragma unroll
                        for (int tile = 0; tile < kTiles; ++tile) {
                            const unsigned(&z)[2] = hi[tile][step];
#if HAS_MMA_K16
                            mma_k16(sums[tile], z[0], z[1], z[0], z[1], c.hi, c.lo);
#else
                            mma_k8(sums[tile], z[0], z[1], c.hi);
                            mma_k8(sums[tile], z[0], z[1], c.lo);
#endif
                            if (kDim > 4 && kHasLow<Latent>) mma_k8(sums[tile], lo[tile][step][0], lo[tile][step][1], c.hi);
                        }
                    }
#pragma unroll
                    for (int tile = 0; tile < kTiles; ++tile) {
                        largest[tile][0] = fmaxf(largest[tile][0], fmaxf(sums[tile][0], sums[tile][1]));
                        largest[tile][1] = fmaxf(largest[tile][1], fmaxf(sums[tile][2], sums[tile][3]));
                    }
                }
#pragma unroll
                for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        if (largest[tile][half] > best[tile][half]) {
                            best[tile][half] = largest[tile][half];
                            best_chunk[tile][half] = tile_start / kChunk + chunk;
                        }
                    }
                }
            }
        }

        // Over the lanes that share a position: the largest score, and the first block of 16 rows among equals.
        __syncthreads();
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int local = (column * kTiles + tile) * 16 + 8 * half + quad;
                shared.found.best[share * 4 + member][local] = best[tile][half];
                shared.found.block[share * 4 + member][local] = best_chunk[tile][half] * 4 + member;
            }
        }
        __syncthreads();
        if (thread < kPositions) {
            float winner = shared.found.best[0][thread];
            int winner_block = shared.found.block[0][thread];
            for (int other = 1; other < kShares * 4; ++other) {
                const float score = shared.found.best[other][thread];
                const int block = shared.found.block[other][thread];
                if (score > winner || (score == winner && block < winner_block)) {
                    winner = score;
                    winner_block = block;
                }
            }
            shared.block[thread] = winner_block;
        }
        __syncthreads();

        // The winning block in float32, one row per thread.
        for (int local = thread / kLaneRows; local < kPositions; local += kThreads / kLaneRows) {
            const int row = shared.block[local] * kLaneRows + thread % kLaneRows;
            const float *source = group_rows + static_cast<long long>(row < rows ? row : rows - 1) * dim;
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < kDim; ++i) {
                if (i < dim) sum = __fmaf_rn(shared.latent[local * kDim + i], source[i], sum);
            }
            shared.scores[thread % kLaneRows][local] = sum;
        }
        __syncthreads();
        if (thread < kPositions && first + thread < positions) {
            float winner = shared.scores[0][thread];
            int winner_row = 0;
#pragma unroll
            for (int row = 1; row < kLaneRows; ++row) {
                const float score = shared.scores[row][thread];
                if (score > winner) {
                    winner = score;
                    winner_row = row;
                }
            }
            const int code = shared.block[thread] * kLaneRows + winner_row;
            const long long position = first + thread;
            const long long image = position / area;
            codes[(image * groups + group) * area + (position - image * area)] = code < rows ? code : rows - 1;
        }
    }
}

template <typename Latent>
__device__ __forceinline__ void grouped_argmin(const Latent *latent, const float *codebook, int positions, int area, int rows, int dim,
                                               int *codes, Shared &shared) {
    if (dim <= 4) {
        scan_group<4>(latent, codebook, positions, area, rows, dim, codes, shared);
    } else if (dim <= 8) {
        scan_group<8>(latent, codebook, positions, area, rows, dim, codes, shared);
    } else if (dim <= 16) {
        scan_group<16>(latent, codebook, positions, area, rows, dim, codes, shared);
    } else {
        scan_group<32>(latent, codebook, positions, area, rows, dim, codes, shared);
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 3)
    grouped_argmin_float(const float *latent, const float *codebook, int positions, int area, int rows, int dim, int *codes) {
    __shared__ Shared shared;
    grouped_argmin(latent, codebook, positions, area, rows, dim, codes, shared);
}

extern "C" __global__ void __launch_bounds__(kThreads, 3)
    grouped_argmin_half(const Half *latent, const float *codebook, int positions, int area, int rows, int dim, int *codes) {
    __shared__ Shared shared;
    grouped_argmin(latent, codebook, positions, area, rows, dim, codes, shared);
}
