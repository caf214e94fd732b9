// SPDX-License-Identifier: Apache-2.0
// A star block in inference, its norms folded away: x + after(g(star(f1(u), f2(u)))), u = before(x). Before and after are
// a depthwise convolution (StarNet), a shift (StarShift), or nothing.
//
// A few samples at a time go through all three kernels, so that what lies between stays in cache.
#include "calls.h"
#include "panels.h"
#include "scratch.h"

constexpr int64_t CACHED = 128 * 1024;  // floats that lie between the kernels

namespace {

struct Space {
    int64_t kernel;          // of the depthwise convolution, 0: none
    const float* weights;    // its own, by starshift_depthwise_pack_for
    const int64_t* offsets;  // of the shift: runs of (channels, dy, dx), 0: none
    int64_t runs;
    bool none() const { return !kernel && !runs; }
};

struct Block {
    int64_t dtype, threads, C, H, W;

    // What is added, if anything, is of the same samples.
    void mix(const Space& space, int64_t count, const void* from, void* to, const void* residual) const {
        if (space.kernel) {
            const int64_t k = space.kernel, sizes[14] = {count, C, H, W, H, W, k, k, 1, 1, k / 2, k / 2, 1, 1};
            starshift_depthwise_forward(dtype, threads, sizes, PLAIN(from), space.weights, to, residual, nullptr,
                                        nullptr, nullptr);
            return;
        }
        if (space.runs)
            starshift_shift2d(dtype == 0 ? 4 : 2, 1, count, C, H, W, from, space.offsets, space.runs, to, threads);
        if (residual) add(count * C * H * W, residual, to);
    }

    void add(int64_t n, const void* x, void* to) const {
        parallel(threads, [&](int64_t t, int64_t of) {
            const Range range = share(n, t, of);
            for (int64_t i = range.begin; i < range.end; i += VL) {
                const int part = (int)least(VL, range.end - i);
                auto one = [&](const auto* from, auto* at) { store_n(at, load_n(at, part) + load_n(from, part), part); };
                if (dtype == 0)
                    one((const float*)x + i, (float*)to + i);
                else
                    one((const bf16*)x + i, (bf16*)to + i);
            }
        });
    }
};

}  // namespace

#define SPACE(name) int64_t name##_kernel, const float *name, const int64_t *name##_offsets, int64_t name##_runs

// C channels, K hidden units. star: by starshift_star_mlp_pack_for, of this dtype.
API void starshift_star_block_folded(int64_t dtype, int64_t threads, int64_t N, int64_t C, int64_t H, int64_t W,
                                     int64_t K, const void* x, SPACE(before), const float* star, int64_t act,
                                     int64_t placement, SPACE(after), void* out) {
    const Block block{dtype, threads, C, H, W};
    const Space first{before_kernel, before, before_offsets, before_runs};
    const Space last{after_kernel, after, after_offsets, after_runs};
    const int64_t sample = C * H * W, bytes = sample * (dtype == 0 ? 4 : 2), most_samples = most(1, CACHED / sample);
    Scratch between(least(N, most_samples) * sample);
    for (int64_t n = 0; n < N; n += most_samples) {
        const int64_t count = least(most_samples, N - n);
        const char* in = (const char*)x + n * bytes;
        char* to = (char*)out + n * bytes;
        float* y = between;
        const void* u = first.none() ? (const void*)in : y;
        void* z = last.none() ? (void*)to : y;
        if (!first.none()) block.mix(first, count, in, y, nullptr);
        starshift_star_mlp_forward(dtype, count * H * W, C, K, C, PLAIN(u), star, act, placement, z, nullptr, nullptr,
                                   threads);
        block.mix(last, count, z, to, in);
    }
}
