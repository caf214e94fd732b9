// SPDX-License-Identifier: Apache-2.0
// StarNet's block in inference, its norms folded away: x + dw2(g(star(f1(u), f2(u)))), u = dw1(x).
//
// A few samples at a time go through all three kernels, so that what lies between stays in cache.
#include "calls.h"
#include "panels.h"
#include "scratch.h"

constexpr int64_t CACHED = 128 * 1024;  // floats that lie between the kernels

// C channels, K hidden units; k_before and k_after are the depthwise kernels' sizes. before and after: by
// starshift_depthwise_pack; star: by starshift_star_mlp_pack.
API void starshift_star_block_folded(int64_t dtype, int64_t threads, int64_t N, int64_t C, int64_t H, int64_t W,
                                     int64_t K, int64_t k_before, int64_t k_after, const void* x, const float* before,
                                     const float* star, const float* after, int64_t act, int64_t placement,
                                     void* out) {
    const int64_t sample = C * H * W, bytes = sample * (dtype == 0 ? 4 : 2), most_samples = most(1, CACHED / sample);
    Scratch between(least(N, most_samples) * sample);
    float* y = between;
    for (int64_t n = 0; n < N; n += most_samples) {
        const int64_t count = least(most_samples, N - n);
        const char* in = (const char*)x + n * bytes;
        auto depthwise = [&](int64_t k, const void* from, const float* weights, void* to, const void* residual) {
            const int64_t sizes[14] = {count, C, H, W, H, W, k, k, 1, 1, k / 2, k / 2, 1, 1};
            starshift_depthwise_forward(dtype, threads, sizes, PLAIN(from), weights, to, residual, nullptr, nullptr,
                                        nullptr);
        };
        depthwise(k_before, in, before, y, nullptr);
        starshift_star_mlp_forward(dtype, count * H * W, C, K, C, PLAIN(y), star, act, placement, y, nullptr, nullptr,
                                   threads);
        depthwise(k_after, y, after, (char*)out + n * bytes, in);
    }
}
