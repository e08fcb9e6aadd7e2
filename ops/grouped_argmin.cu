// GroupedArgmin on NVIDIA GPUs: for every position and group, the index of the codebook row with the largest
// inner product; float32 accumulation whatever the latent's type; ties go to the lowest index.
//
//   latent   float or half [B, G*d, h, w]     codebook  float [G, K, d]     codes  int32 [B, G, h, w]
//
// Launch: 256 threads; grid.x = any number of blocks, best ceil(positions / 128); grid.y = G; no dynamic shared memory.
// `positions` is B*h*w, `area` is h*w; 1 <= d <= 32; any K >= 1. One launch, no workspace. Offsets are 64-bit.
//
// What bounds it: the rate at which an SM issues FP32 instructions (4 warp instructions a clock), not memory. A score costs d
// multiply-adds and one max. The index is not carried along: a thread keeps the largest score of every chunk of 16 rows and
// compares once a chunk, and 16 lanes score the winning chunk once more to find the row (the same instructions in the same
// order, hence the same bits). A thread holds 4 positions, so one broadcast 16-byte read of a row feeds 4 scores.
// Issue slots per score: d + 1 + d/16 (shared reads) + 3/16 (chunk compare), that is 5.4 for d = 4 and 9.7 for d = 8.
// H200, 132 SMs x 128 lanes x 1.75 GHz = 29.6e12 slots a second, 14,400 positions:
//   G x K x d = 8 x 2048 x 4:  236e6 scores x 5.4 = 43 us;    4 x 8192 x 8:  472e6 scores x 9.7 = 155 us
// (lower bounds from this count, not measurements). Memory: 1.8 MB of latents and the codebook from L2 once per 128 positions.
// d = 8 is above the 100 us wanted, and no arrangement of FP32 instructions can reach it: 472e6 x 8 multiply-adds alone take
// 128 us. Tensor cores could (a design, neither written nor measured): a row as two halves, hi = half(row), lo = half(row - hi),
// beside each other along k, and the latent twice, so that one mma.m16n8k16 with float accumulators gives 16 x 8 scores of d = 8.
// For half latents, which are exact, errors stay below 2^-22 of a unit row, and equal rows keep equal scores. The maximum stays
// one instruction a score (16 us); the products take 26 us at the 60 % of peak that mma.sync is said to reach on Hopper.
// Float latents need a scale per position and a second mma; sm_75 has mma.m16n8k8 only. Left out until it can be tried on a GPU.
// The 256 threads of a block are 8 warps that share the positions and split the rows, so that small maps fill the GPU too.
//
// The file needs no header, so that NVRTC compiles it with nothing installed beside it, and it compiles as C++ on a host
// whose shim defines the CUDA keywords and the few intrinsics used.

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
__device__ __forceinline__ float half_bits_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
#endif

namespace {

enum : int {
    kThreads = 256,
    kWarps = kThreads / 32,
    kChunk = 16,           // rows that share one running maximum
    kTileFloats = 4096,    // 16 KiB of codebook rows at a time
    kMaxPositions = 128,   // of one block
    kLatentFloats = 1024,  // kMaxPositions x 8; wider rows take fewer positions
};

struct __align__(16) Float4 { float x, y, z, w; };

struct Half { unsigned short bits; };

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(Half value) { return half_bits_to_float(value.bits); }

struct Shared {
    Float4 tile[kTileFloats / 4];     // codebook rows; after the scan, each warp's (best, chunk) per position
    float latent[kLatentFloats];      // [position of the block][dim], for the second look at the winning chunk
    float best[kMaxPositions];        // largest score of a position
    int best_chunk[kMaxPositions];    // the first chunk that holds it
    int code[kMaxPositions];          // the first row that holds it
};

template <int kDim>
__device__ __forceinline__ float inner_product(const float *latent, const Float4 *row) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kDim / 4; ++i) {
        const Float4 part = row[i];
        sum = i == 0 ? __fmul_rn(latent[0], part.x) : __fmaf_rn(latent[4 * i], part.x, sum);
        sum = __fmaf_rn(latent[4 * i + 1], part.y, sum);
        sum = __fmaf_rn(latent[4 * i + 2], part.z, sum);
        sum = __fmaf_rn(latent[4 * i + 3], part.w, sum);
    }
    return sum;
}

// kDim: d rounded up to 4, 8, 16 or 32; the added dimensions are zero in latents and rows and change no score.
template <int kDim, typename Latent>
__device__ __forceinline__ void scan_group(const Latent *latent, const float *codebook, int positions, int area, int rows, int dim,
                                           int *codes, Shared &shared) {
    constexpr int kPerThread = kDim <= 8 ? 4 : (kDim == 16 ? 2 : 1);
    constexpr int kPositions = 32 * kPerThread;
    constexpr int kTileRows = kTileFloats / kDim;
    static_assert(kPositions * kDim <= kLatentFloats, "latents of a block must fit");
    static_assert(kPositions * kWarps * 2 <= kTileFloats, "the warps' maxima must fit into the tile");

    const int thread = static_cast<int>(threadIdx.x);
    const int lane = thread % 32;
    const int warp = thread / 32;
    const long long group = blockIdx.y;
    const long long groups = gridDim.y;
    const float *group_rows = codebook + group * rows * dim;

    for (long long first = static_cast<long long>(blockIdx.x) * kPositions; first < positions;
         first += static_cast<long long>(gridDim.x) * kPositions) {
        // Latents: every warp holds the same positions. A position with a NaN or an infinity is taken as all zeros: every
        // score ties and index 0 wins, which is what the contract asks for.
        float z[kPerThread][kDim];
#pragma unroll
        for (int p = 0; p < kPerThread; ++p) {
            const long long position = first + lane + 32 * p;
            const bool inside = position < positions;
            const long long image = inside ? position / area : 0;
            const Latent *source = latent + (image * groups + group) * dim * area + (inside ? position - image * area : 0);
            float zero_if_finite = 0.0f;
#pragma unroll
            for (int i = 0; i < kDim; ++i) {
                z[p][i] = inside && i < dim ? to_float(source[static_cast<long long>(i) * area]) : 0.0f;
                zero_if_finite += z[p][i] * 0.0f;
            }
#pragma unroll
            for (int i = 0; i < kDim; ++i) {
                z[p][i] = zero_if_finite == 0.0f ? z[p][i] : 0.0f;
                if (warp == 0) shared.latent[(lane + 32 * p) * kDim + i] = z[p][i];
            }
        }

        // Scan: the warps take the chunks of a tile in turn, so each meets its chunks in rising order.
        float best[kPerThread];
        int best_chunk[kPerThread];
#pragma unroll
        for (int p = 0; p < kPerThread; ++p) {
            best[p] = -__int_as_float(0x7f800000);
            best_chunk[p] = warp;
        }
        for (int tile_start = 0; tile_start < rows; tile_start += kTileRows) {
            const int left = rows - tile_start;
            const int chunks = left < kTileRows ? (left + kChunk - 1) / kChunk : kTileRows / kChunk;
            __syncthreads();
            // The last chunk is filled up with copies of the last row: they tie with it at a higher index and never win.
            for (int i = thread; i < chunks * kChunk * (kDim / 4); i += kThreads) {
                const int row = tile_start + i / (kDim / 4);
                const int column = 4 * (i % (kDim / 4));
                const float *source = group_rows + static_cast<long long>(row < rows ? row : rows - 1) * dim + column;
                Float4 part;
                part.x = column < dim ? source[0] : 0.0f;
                part.y = column + 1 < dim ? source[1] : 0.0f;
                part.z = column + 2 < dim ? source[2] : 0.0f;
                part.w = column + 3 < dim ? source[3] : 0.0f;
                shared.tile[i] = part;
            }
            __syncthreads();
            for (int chunk = warp; chunk < chunks; chunk += kWarps) {
                const Float4 *row = shared.tile + chunk * kChunk * (kDim / 4);
                float largest[kPerThread];
#pragma unroll
                for (int p = 0; p < kPerThread; ++p) largest[p] = -__int_as_float(0x7f800000);
#pragma unroll kDim <= 8 ? kChunk : 2
                for (int r = 0; r < kChunk; ++r) {
#pragma unroll
                    for (int p = 0; p < kPerThread; ++p) {
                        largest[p] = fmaxf(largest[p], inner_product<kDim>(z[p], row + r * (kDim / 4)));
                    }
                }
#pragma unroll
                for (int p = 0; p < kPerThread; ++p) {
                    if (largest[p] > best[p]) {
                        best[p] = largest[p];
                        best_chunk[p] = tile_start / kChunk + chunk;
                    }
                }
            }
        }

        // Over the warps: the largest score, and the first chunk among equals.
        float *warp_best = reinterpret_cast<float *>(shared.tile);
        int *warp_chunk = reinterpret_cast<int *>(warp_best + kWarps * kPositions);
        __syncthreads();
#pragma unroll
        for (int p = 0; p < kPerThread; ++p) {
            warp_best[warp * kPositions + lane + 32 * p] = best[p];
            warp_chunk[warp * kPositions + lane + 32 * p] = best_chunk[p];
        }
        __syncthreads();
        if (thread < kPositions) {
            float winner = warp_best[thread];
            int winner_chunk = warp_chunk[thread];
            for (int w = 1; w < kWarps; ++w) {
                const float other = warp_best[w * kPositions + thread];
                const int other_chunk = warp_chunk[w * kPositions + thread];
                if (other > winner || (other == winner && other_chunk < winner_chunk)) {
                    winner = other;
                    winner_chunk = other_chunk;
                }
            }
            shared.best[thread] = winner;
            shared.best_chunk[thread] = winner_chunk;
            shared.code[thread] = rows - 1;
        }
        __syncthreads();

        // In the winning chunk: the first row with exactly that score, one row per thread.
        for (int local = thread / kChunk; local < kPositions; local += kThreads / kChunk) {
            const int row = shared.best_chunk[local] * kChunk + thread % kChunk;
            if (row < rows) {
                const float *source = group_rows + static_cast<long long>(row) * dim;
                Float4 parts[kDim / 4];
#pragma unroll
                for (int i = 0; i < kDim / 4; ++i) {
                    parts[i].x = 4 * i < dim ? source[4 * i] : 0.0f;
                    parts[i].y = 4 * i + 1 < dim ? source[4 * i + 1] : 0.0f;
                    parts[i].z = 4 * i + 2 < dim ? source[4 * i + 2] : 0.0f;
                    parts[i].w = 4 * i + 3 < dim ? source[4 * i + 3] : 0.0f;
                }
                if (inner_product<kDim>(shared.latent + local * kDim, parts) == shared.best[local]) {
                    atomicMin(&shared.code[local], row);
                }
            }
        }
        __syncthreads();

        if (thread < kPositions && first + thread < positions) {
            const long long position = first + thread;
            const long long image = position / area;
            codes[(image * groups + group) * area + (position - image * area)] = shared.code[thread];
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
