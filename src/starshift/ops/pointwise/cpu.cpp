// SPDX-License-Identifier: Apache-2.0
// Two pointwise convolutions with an activation between them; and the gradient of one's weights, which torch's matrix
// products leave slow. Tensors are rows (pixels) of channels.
#include "mlp.h"

namespace {

// Rows of x into panels of `space` rows, read in the order in which they lie. Adds up columns.
template <class T>
void pack_in_order(const T* x, int64_t columns, int64_t rows, int64_t space, float* to, float* sums) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c += VL) {
            vf a = load_n(x + r * columns + c, (int)least(VL, columns - c));
            store(to + (c / PANEL * space + r) * PANEL + c % PANEL, a);
            if (sums) store(sums + c, load(sums + c) + a);
        }
}

// to[q][p] of [16][16]: the transpose of panel p of grad times panel q of x, summed over this thread's rows.
template <class T>
void weight_gradient(const T* grad, const T* x, int64_t K, int64_t C, Range range, float* to, float* sums) {
    constexpr int64_t ROWS = 128;  // of a chunk, so that two panels stay in the first cache
    Scratch g(panels(K) * ROWS * PANEL), in(panels(C) * ROWS * PANEL), chunk_sums(panels(K) * PANEL);
    memset(g, 0, panels(K) * ROWS * PANEL * 4);
    memset(in, 0, panels(C) * ROWS * PANEL * 4);
    for (int64_t first = range.begin; first < range.end; first += ROWS) {
        int64_t rows = least(ROWS, range.end - first);
        memset(chunk_sums, 0, panels(K) * PANEL * 4);
        pack_in_order(grad + first * K, K, rows, ROWS, g, chunk_sums);
        for (int64_t k = 0; k < K; k++) sums[k] += chunk_sums[k];
        pack_in_order<T>(x + first * C, C, rows, ROWS, in, nullptr);
        for (int64_t q = 0; q < panels(C); q++)
            for (int64_t p = 0; p < panels(K); p++)
                outer(g + p * ROWS * PANEL, in + q * ROWS * PANEL, rows, least(PANEL, C - q * PANEL),
                      to + (q * panels(K) + p) * PANEL * PANEL);
    }
}

template <class T>
void weight_gradient(const T* grad, const T* x, int64_t M, int64_t K, int64_t C, float* gw, float* gb,
                     int64_t threads) {
    threads = most(1, least(threads, M / 256));
    int64_t size = panels(K) * panels(C) * PANEL * PANEL + panels(K) * PANEL;
    Scratch parts(threads * size);
    memset(parts, 0, threads * size * 4);
    parallel(threads, [&](int64_t t, int64_t of) {
        float* mine = parts + t * size;
        weight_gradient(grad, x, K, C, share(M, t, of), mine, mine + size - panels(K) * PANEL);
    });
    for (int64_t t = 0; t < threads; t++) {
        const float* part = parts + t * size;
        for (int64_t k = 0; k < K; k++) {
            for (int64_t c = 0; c < C; c++)
                gw[k * C + c] +=
                    part[((c / PANEL * panels(K) + k / PANEL) * PANEL + k % PANEL) * PANEL + c % PANEL];
            gb[k] += part[size - panels(K) * PANEL + k];
        }
    }
}

}  // namespace

// Rows of x (M, C), out and grad (M, N); weights (K, C) and (N, K), they and their gradients float32; biases may be null.
API void starshift_pointwise_mlp_forward(int64_t dtype, int64_t M, int64_t C, int64_t K, int64_t N, const void* x,
                                         const float* w1, const float* b1, const float* w2, const float* b2,
                                         int64_t act, void* out, int64_t threads) {
    const Sizes s{M, C, K, N};
    if (dtype == 0)
        mlp_forward(s, (const float*)x, w1, b1, w2, b2, act, (float*)out, threads);
    else
        mlp_forward(s, (const bf16*)x, w1, b1, w2, b2, act, (bf16*)out, threads);
}

API void starshift_pointwise_mlp_backward(int64_t dtype, int64_t M, int64_t C, int64_t K, int64_t N, const void* grad,
                                          const void* x, const float* w1, const float* b1, const float* w2,
                                          int64_t act, void* gx, float* gw1, float* gb1, float* gw2, float* gb2,
                                          int64_t threads) {
    const Sizes s{M, C, K, N};
    if (dtype == 0)
        mlp_backward(s, (const float*)grad, (const float*)x, w1, b1, w2, act, (float*)gx, gw1, gb1, gw2, gb2, threads);
    else
        mlp_backward(s, (const bf16*)grad, (const bf16*)x, w1, b1, w2, act, (bf16*)gx, gw1, gb1, gw2, gb2, threads);
}

// weight_grad (K, C) += transpose(grad (M, K)) x (M, C); bias_grad (K) += grad summed over its rows.
API void starshift_weight_gradient(int64_t dtype, const void* grad, const void* x, int64_t M, int64_t K, int64_t C,
                                   float* weight_grad, float* bias_grad, int64_t threads) {
    if (dtype == 0)
        weight_gradient((const float*)grad, (const float*)x, M, K, C, weight_grad, bias_grad, threads);
    else
        weight_gradient((const bf16*)grad, (const bf16*)x, M, K, C, weight_grad, bias_grad, threads);
}
