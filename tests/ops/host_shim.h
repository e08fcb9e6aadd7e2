// Runs a CUDA kernel's source on the CPU: the keywords, the launch indices and the few intrinsics it uses.
//
// Every thread of a block is a fiber (ucontext), run in turn on one OS thread. A fiber runs until it must wait, or to its end; then
// the next one runs. Lanes of a warp wait for each other at matrix products, all threads of a block at __syncthreads(). Lanes or
// threads that wait at different things are a kernel that is undefined on a GPU, and end the run with an error.
//
// -DHAS_MMA_K16=0 leaves out what GPUs before Ampere lack.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static  // one block runs at a time
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#ifndef HAS_MMA_K16
#define HAS_MMA_K16 1
#endif

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};

static Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace host {

enum State { kAtProduct, kAtBarrier, kEnded };
static const char *const kStateNames[] = {"wait at a matrix product", "wait at a barrier", "have ended"};

struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    State state = kEnded;
    int products = 0;
};

static ucontext_t scheduler;
static Fiber *current = nullptr;
static std::function<void()> body;

static void stop(State state) {
    current->state = state;
    swapcontext(&current->context, &scheduler);
}

static void entry() {
    body();
    stop(kEnded);
}

// Runs threads `first` to `last` until each stops; returns whether all stopped for the same reason.
static bool step(std::vector<Fiber> &fibers, size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) {
        threadIdx.x = static_cast<unsigned>(i);
        current = &fibers[i];
        swapcontext(&scheduler, &current->context);
    }
    for (size_t i = first; i < last; ++i) {
        if (fibers[i].state != fibers[first].state) {
            fprintf(stderr, "block (%u, %u): thread %zu and others %s while threads %zu and others %s\n", blockIdx.x, blockIdx.y, first,
                    kStateNames[fibers[first].state], i, kStateNames[fibers[i].state]);
            return false;
        }
    }
    return true;
}

// Returns true when every thread of every block ran to its end.
static bool launch(Dim3 grid, Dim3 block, std::function<void()> kernel) {
    body = std::move(kernel);
    gridDim = grid;
    blockDim = block;
    std::vector<Fiber> fibers(block.x);
    for (Fiber &fiber : fibers) fiber.stack.resize(64 << 10);
    for (unsigned index = 0; index < grid.x * grid.y; ++index) {
        blockIdx.x = index % grid.x;
        blockIdx.y = index / grid.x;
        for (Fiber &fiber : fibers) {
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.data();
            fiber.context.uc_stack.ss_size = fiber.stack.size();
            fiber.context.uc_link = nullptr;
            makecontext(&fiber.context, entry, 0);
        }
        do {
            for (size_t warp = 0; warp < fibers.size(); warp += 32) {
                do {
                    if (!step(fibers, warp, warp + 32)) return false;
                } while (fibers[warp].state == kAtProduct);
                if (fibers[warp].state != fibers[0].state) {
                    fprintf(stderr, "block (%u, %u): warp 0's threads %s, warp %zu's %s\n", blockIdx.x, blockIdx.y, kStateNames[fibers[0].state],
                            warp / 32, kStateNames[fibers[warp].state]);
                    return false;
                }
            }
        } while (fibers[0].state != kEnded);
    }
    return true;
}

}  // namespace host

static inline void __syncthreads() { host::stop(host::kAtBarrier); }

static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }

static inline float __int_as_float(int bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline int __float_as_int(float value) {
    int bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// IEEE binary16 to binary32, exact.
static inline float half_bits_to_float(unsigned short bits) {
    const int exponent = (bits >> 10) & 31;
    const int mantissa = bits & 1023;
    float value;
    if (exponent == 31) {
        value = mantissa ? NAN : INFINITY;
    } else if (exponent == 0) {
        value = ldexpf(static_cast<float>(mantissa), -24);
    } else {
        value = ldexpf(static_cast<float>(1024 + mantissa), exponent - 25);
    }
    return bits & 0x8000 ? -value : value;
}

// Binary32 to the nearest IEEE binary16, ties to even.
static inline unsigned short float_to_half_bits(float value) {
    const unsigned sign = __float_as_int(value) < 0 ? 0x8000u : 0u;
    const float size = fabsf(value);
    if (isnan(value)) return 0x7fff;
    if (size >= 65520.0f) return static_cast<unsigned short>(sign | 0x7c00u);
    if (size < 0x1p-14f) return static_cast<unsigned short>(sign | static_cast<unsigned>(nearbyintf(size * 0x1p24f)));
    int exponent;
    const float mantissa = frexpf(size, &exponent);  // [0.5, 1)
    // A mantissa rounded up to 2048 carries into the exponent, as it should.
    return static_cast<unsigned short>(sign | ((exponent + 13) * 1024u + static_cast<unsigned>(nearbyintf(mantissa * 2048.0f))));
}

namespace host {

static const std::vector<float> halves = [] {
    std::vector<float> values(65536);
    for (unsigned bits = 0; bits < 65536; ++bits) values[bits] = half_bits_to_float(static_cast<unsigned short>(bits));
    return values;
}();

// Sum of products as a careless tensor core would give it: products exact, then every term cut, toward zero, at 24 bits counted
// from the largest one. Measured ones keep as many bits or more (Fasi, Higham, Mikaitis, Pranesh 2021, for V100, T4 and A100).
static float cut_sum(const float *a, const float *b, int count, float start) {
    double terms[17] = {start};
    double largest = fabs(terms[0]);
    for (int k = 0; k < count; ++k) {
        terms[k + 1] = static_cast<double>(a[k]) * b[k];
        largest = fmax(largest, fabs(terms[k + 1]));
    }
    if (!(largest > 0) || isinf(largest)) {
        double sum = 0;
        for (int k = 0; k <= count; ++k) sum += terms[k];
        return static_cast<float>(sum);
    }
    int exponent;
    frexp(largest, &exponent);
    const double up = ldexp(1.0, 24 - exponent);
    int64_t sum = 0;
    for (int k = 0; k <= count; ++k) sum += static_cast<int64_t>(terms[k] * up);
    return static_cast<float>(static_cast<double>(sum) * ldexp(1.0, exponent - 24));
}

// sums += a b for one warp: a [16 x depth], b [depth x 8], sums [16 x 8], each lane with its registers in PTX's fragment layout
// (PTX ISA, "Matrix fragments for mma.m16n8k8" and "mma.m16n8k16"). Registers of a: rows 0-7 and 8-15 of the first 8 columns, then
// of the next 8; of b: the first 8 rows, then the next 8.
template <int kDepth>
static void product(float (&sums)[4], const unsigned *a, const unsigned *b) {
    // Two buffers in turn: a lane may write for the next product while others still read this one.
    static unsigned shared_a[2][32][32][4], shared_b[2][32][32][2];
    const unsigned lane = threadIdx.x % 32, turn = current->products++ % 2;
    auto &all_a = shared_a[turn][threadIdx.x / 32];
    auto &all_b = shared_b[turn][threadIdx.x / 32];
    memcpy(all_a[lane], a, kDepth / 4 * sizeof *a);
    memcpy(all_b[lane], b, kDepth / 8 * sizeof *b);
    stop(kAtProduct);
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
        float from_a[kDepth], from_b[kDepth];
        for (unsigned k = 0; k < kDepth; ++k) {
            const unsigned member = k % 8 / 2, shift = k % 2 * 16;
            from_a[k] = halves[all_a[row % 8 * 4 + member][k / 8 * 2 + row / 8] >> shift & 0xffff];
            from_b[k] = halves[all_b[column * 4 + member][k / 8] >> shift & 0xffff];
        }
        sums[i] = cut_sum(from_a, from_b, kDepth, sums[i]);
    }
}

}  // namespace host

static inline void mma_k8(float (&sums)[4], unsigned a0, unsigned a1, unsigned b0) {
    const unsigned a[] = {a0, a1}, b[] = {b0};
    host::product<8>(sums, a, b);
}

static inline void mma_k16(float (&sums)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    const unsigned a[] = {a0, a1, a2, a3}, b[] = {b0, b1};
    host::product<16>(sums, a, b);
}
