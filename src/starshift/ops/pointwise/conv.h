// SPDX-License-Identifier: Apache-2.0
// One pointwise convolution, of floats: where bfloat16 pairs are multiplied, it is torch's (cpu.py). Backward reads the gradient once, for both its results.
#pragma once
#include "chunks.h"

// Rows of a chunk, such that what it works on stays in the second cache.
INLINE int64_t conv_rows(int64_t floats_a_row) { return most(24, least(192, 96 * 1024 / floats_a_row)) / 12 * 12; }

// out (M, K) = x (M, C) transpose(w (K, C)) + bias.
template <class T>
void conv_forward(int64_t M, int64_t C, int64_t K, const T* x, const float* w, const float* bias, T* out,
                  int64_t threads) {
    threads = most(1, least(threads, M / ROW_MULTIPLE));
    const int64_t c = panels(C) * PANEL, k = panels(K) * PANEL;
    Scratch packed(k * C), biases(k);
    parallel(threads, [&](int64_t t, int64_t of) { pack_panels(w, C, 1, C, K, C, packed, t, of); });
    copy_padded(bias, K, k, biases);
    parallel(threads, [&](int64_t t, int64_t of) {
        const Chunks chunks(share(M, t, of), conv_rows(c + k));
        const int64_t space = chunks.size, panel = space * PANEL;
        Scratch in(space * c), result(space * k);
        for (int64_t m = chunks.begin; m < chunks.end; m += space) {
            const int64_t rows = least(space, chunks.end - m);
            pack_in_order<T>(x + m * C, C, rows, space, in, nullptr);
            const Term term{in, panel, packed, C};
            product(term, rows, 0, panels(K), K, result, panel, false);
            unpack_in_order(result, space, rows, K, bias ? (const float*)biases : nullptr, out + m * K);
        }
    });
}

// gx (M, C) = grad (M, K) w, or null: not wanted; gw (K, C) = transpose(grad) x; gb (K), the sums of grad.
template <class T>
void conv_backward(int64_t M, int64_t C, int64_t K, const T* grad, const T* x, const float* w, T* gx, float* gw,
                   float* gb, int64_t threads) {
    threads = most(1, least(threads, M / ROW_MULTIPLE));
    const int64_t c = panels(C) * PANEL, k = panels(K) * PANEL, size = k * c + k;
    Scratch packed(K * c), totals(threads * size);
    parallel(threads, [&](int64_t t, int64_t of) { pack_panels(w, 1, C, K, C, K, packed, t, of); });
    threads = parallel(threads, [&](int64_t t, int64_t of) {
        float *mine = totals + t * size, *sums = mine + k * c;
        for (int64_t i = 0; i < size; i++) mine[i] = 0;
        const Chunks chunks(share(M, t, of), conv_rows(2 * c + k));
        const int64_t space = chunks.size, panel = space * PANEL;
        Scratch in(space * c), dy(space * k), dx(space * c), chunk_sums(k);
        for (int64_t m = chunks.begin; m < chunks.end; m += space) {
            const int64_t rows = least(space, chunks.end - m);
            for (int64_t i = 0; i < k; i++) chunk_sums[i] = 0;
            pack_in_order<T>(grad + m * K, K, rows, space, dy, chunk_sums);
            for (int64_t i = 0; i < k; i++) sums[i] += chunk_sums[i];
            pack_in_order<T>(x + m * C, C, rows, space, in, nullptr);
            for (int64_t p = 0; p < panels(K); p++)
                outers(dy + p * panel, in, panel, rows, C, mine + p * PANEL * PANEL, k * PANEL);
            if (!gx) continue;
            const Term term{dy, panel, packed, K};
            product(term, rows, 0, panels(C), C, dx, panel, false);
            unpack_in_order<T>(dx, space, rows, C, nullptr, gx + m * C);
        }
    });
    add_threads(totals, size, threads);
    unpack(totals, k, {0, K}, C, gw);
    for (int64_t i = 0; i < K; i++) gb[i] = totals[k * c + i];
}
