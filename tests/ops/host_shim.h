// Runs a CUDA kernel's source on the CPU: the keywords, the launch indices and the few intrinsics it uses.
//
// Every thread of a block is a fiber (ucontext), run in turn on one OS thread. A fiber runs until __syncthreads() or its end; then
// the next one runs. When all have stopped, either all wait at a barrier or all have ended: anything else is a kernel in which
// threads of one block disagree about a barrier, which is undefined on a GPU, and ends the run with an error.
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

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};

static Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace host {

struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    bool ended = false;
};

static ucontext_t scheduler;
static Fiber *current = nullptr;
static std::function<void()> body;

static void entry() {
    body();
    current->ended = true;
    swapcontext(&current->context, &scheduler);
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
            fiber.ended = false;
            makecontext(&fiber.context, entry, 0);
        }
        for (size_t ended = 0; ended < fibers.size();) {
            ended = 0;
            for (size_t i = 0; i < fibers.size(); ++i) {
                threadIdx.x = static_cast<unsigned>(i);
                current = &fibers[i];
                swapcontext(&scheduler, &current->context);
                ended += fibers[i].ended ? 1 : 0;
            }
            if (ended != 0 && ended != fibers.size()) {
                fprintf(stderr, "block (%u, %u): %zu of %zu threads ended while the others wait at a barrier\n", blockIdx.x, blockIdx.y,
                        ended, fibers.size());
                return false;
            }
        }
    }
    return true;
}

}  // namespace host

static inline void __syncthreads() { swapcontext(&host::current->context, &host::scheduler); }

static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }

static inline float __int_as_float(int bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline int atomicMin(int *address, int value) {
    const int old = *address;
    *address = value < old ? value : old;
    return old;
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
