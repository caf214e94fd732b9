// SPDX-License-Identifier: Apache-2.0
// The three passes for square filters of 3, 5 and 7 and stride 1 and 2, for one vector of channels.
//
// Each walks along the columns of a few rows. The sums of all outputs that a column still adds to stay in registers and
// move on by one place a step; so every input is loaded once for all its columns of taps, borders need no copy and no
// multiplication by zero in the vertical, and any width is served. The tensor itself is read, or a tile (tile.h).
#pragma once
#include <type_traits>

#include "output.h"

namespace depthwise {

constexpr int rows_at_once(int K, int S) { return S == 2 || (REGISTERS - 2) / K < 4 ? 2 : 4; }
#define UNROLL _Pragma("GCC unroll 16")

// R rows of the convolution; the first row's first tap meets row `top` of x, which may lie outside. weights: (K, K, VL).
template <int K, int S, int R, bool WHOLE>
static void convolve_rows(const View x, int64_t top, int64_t padding, int64_t columns, const float* weights,
                          const float* bias, const Target to, int64_t ahead, int64_t to_ahead) {
    constexpr int D = (K + S - 1) / S, ROWS = (R - 1) * S + K;  // columns of outputs in flight, rows of x they see
    vf sums[R][D];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int d = 0; d < D; d++) sums[r][d] = load(bias);
    const int64_t first = WHOLE ? 0 : (top < 0 ? -top : 0);
    const int64_t last = WHOLE ? ROWS : (x.height - top < ROWS ? x.height - top : ROWS);
    const float* const rows = x.data + top * x.row;
    // Step m takes the columns m S + s - padding, in which tap s + S d belongs to output m - d; output m - (D - 1) is done.
    const int64_t begin = padding / S < D - 1 ? padding / S : D - 1, end = columns + D - 1;
    const int64_t x_row = x.row, x_column = x.column, width = x.width, to_row = to.row, to_column = to.column;
    auto step = [&](int64_t m, auto checked) __attribute__((always_inline)) {
        UNROLL for (int s = 0; s < S; s++) {
            const int64_t column = m * S + s - padding;
            if (checked && (column < 0 || column >= width)) continue;
            const float* at = rows + column * x_column;
            if (ahead) UNROLL for (int i = ROWS - R * S; i < ROWS; i++) __builtin_prefetch(at + i * x_row + ahead);
            UNROLL for (int i = 0; i < ROWS; i++) {
                if (!WHOLE && (i < first || i >= last)) continue;
                const vf value = load(at + i * x_row);
                const float* w = weights;
                OPAQUE(w);
                UNROLL for (int d = 0; d < D; d++) UNROLL for (int r = 0; r < R; r++) {
                    const int ky = i - r * S, kx = s + S * d;
                    if (ky >= 0 && ky < K && kx < K) sums[r][d] += value * load(w + (ky * K + kx) * VL);
                }
            }
        }
        const int64_t o = m - (D - 1);
        if (!checked || o >= 0)
            UNROLL for (int r = 0; r < R; r++) {
                float* p = to.data + r * to_row + o * to_column;
                put(to, p, sums[r][D - 1]);
                if (to_ahead) __builtin_prefetch(p + to_ahead, 1);
            }
        UNROLL for (int r = 0; r < R; r++) {
            UNROLL for (int d = D - 1; d > 0; d--) sums[r][d] = sums[r][d - 1];
            sums[r][0] = load(bias);
        }
    };
    int64_t m = begin;
    const int64_t safe = D - 1 > ceil_div(padding, S) ? D - 1 : ceil_div(padding, S);
    const int64_t full = floor_div(x.width + padding, S) < end ? floor_div(x.width + padding, S) : end;
    for (; m < safe && m < end; m++) step(m, std::true_type());
    for (; m < full; m++) step(m, std::false_type());
    for (; m < end; m++) step(m, std::true_type());
}

// R rows of the transposed convolution: a row q of `grad` adds to rows S q + ky - padding, and the first of the R is row
// S q - padding. Those in `inside` are written. With stride 1 and flipped weights this is the convolution itself.
template <int K, int S, int R, bool WHOLE>
static void transpose_rows(const View grad, int64_t q, int64_t padding, int64_t columns, const float* weights,
                           const float* bias, const Target to, Span inside, int64_t ahead,
                           int64_t to_ahead) {
    constexpr int D = (K + S - 1) / S, ROWS = D + (R - 1) / S;
    vf sums[R][K];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int k = 0; k < K; k++) sums[r][k] = load(bias);
    const int64_t top = q - (D - 1);
    const int64_t first = WHOLE ? 0 : (top < 0 ? -top : 0);
    const int64_t last = WHOLE ? ROWS : (grad.height - top < ROWS ? grad.height - top : ROWS);
    const float* const rows = grad.data + top * grad.row;
    const int64_t end = ceil_div(columns + padding, S);
    for (int64_t o = 0; o < end; o++) {  // column o of grad adds to columns o S + kx - padding; of these, S are then done
        if (o < grad.width) {
            const float* at = rows + o * grad.column;
            if (ahead) UNROLL for (int i = ROWS - (R + S - 1) / S; i < ROWS; i++) __builtin_prefetch(at + i * grad.row + ahead);
            UNROLL for (int i = 0; i < ROWS; i++) {
                if (!WHOLE && (i < first || i >= last)) continue;
                const vf value = load(at + i * grad.row);
                const float* w = weights;
                OPAQUE(w);
                UNROLL for (int r = 0; r < R; r++) {
                    const int ky = r % S + S * (D - 1 + r / S - i);
                    if (ky >= 0 && ky < K && D - 1 + r / S >= i)
                        UNROLL for (int kx = 0; kx < K; kx++) sums[r][kx] += value * load(w + (ky * K + kx) * VL);
                }
            }
        }
        UNROLL for (int s = 0; s < S; s++) {
            const int64_t column = o * S + s - padding;
            if (column >= 0 && column < columns)
                UNROLL for (int r = 0; r < R; r++) {
                    float* p = to.data + r * to.row + column * to.column;
                    if (WHOLE || (r >= inside.begin && r < inside.end)) put(to, p, sums[r][s]);
                    if (to_ahead) __builtin_prefetch(p + to_ahead, 1);
                }
        }
        UNROLL for (int r = 0; r < R; r++) {
            UNROLL for (int k = 0; k + S < K; k++) sums[r][k] = sums[r][k + S];
            UNROLL for (int k = K - S; k < K; k++) sums[r][k] = load(bias);
        }
    }
}

// How many rows of taps are summed at a time, beside the gradients in flight and an input.
constexpr int tap_rows(int K, int S) {
    const int fit = (REGISTERS - 1 - (K + S - 1) / S) / K;
    return fit < K ? fit : K;
}

// Add to `to` (K, K, VL) the gradients of the taps of rows ky .. ky + KY - 1 from the rows `y` of grad; tap 0 of row y
// meets row S y - lead of x. With all rows of taps at once the gradient of the bias too, to `to` + K K VL.
template <int K, int S, int KY>
static void sum_taps(const View grad, Span y, const View x, int64_t lead, int64_t padding, int ky, float* to,
                     int64_t ahead) {
    constexpr int D = (K + S - 1) / S;
    constexpr bool BIAS = KY == K;
    vf sums[KY][K] = {}, total = {};
    const int64_t end = grad.width + D - 1;
    for (; y.begin < y.end; y.begin++) {
        const int64_t top = y.begin * S + ky - lead;
        const int64_t first = top < 0 ? -top : 0, last = x.height - top < KY ? x.height - top : KY;
        if (!BIAS && first >= last) continue;
        const float *g = grad.data + y.begin * grad.row, *rows = x.data + top * x.row;
        vf grads[D] = {};
        auto step = [&](int64_t m, auto checked, auto whole) __attribute__((always_inline)) {
            UNROLL for (int d = D - 1; d > 0; d--) grads[d] = grads[d - 1];
            grads[0] = !checked || m < grad.width ? load(g + m * grad.column) : (vf){};
            if (BIAS) total += grads[0];
            if (ahead) __builtin_prefetch(g + m * grad.column + ahead);
            UNROLL for (int s = 0; s < S; s++) {
                const int64_t column = m * S + s - padding;
                if (checked && (column < 0 || column >= x.width)) continue;
                const float* at = rows + column * x.column;
                if (ahead) __builtin_prefetch(at + (KY - 1) * x.row + ahead);
                UNROLL for (int a = 0; a < KY; a++) {
                    if (!whole && (a < first || a >= last)) continue;
                    const vf value = load(at + a * x.row);
                    UNROLL for (int d = 0; d < D; d++)
                        if (s + S * d < K) sums[a][s + S * d] += value * grads[d];
                }
            }
        };
        auto row = [&](auto whole) __attribute__((always_inline)) {
            int64_t m = 0;
            const int64_t safe = ceil_div(padding, S), inner = floor_div(x.width + padding, S);
            const int64_t full = inner < grad.width ? inner : grad.width;
            for (; m < safe && m < end; m++) step(m, std::true_type(), whole);
            for (; m < full; m++) step(m, std::false_type(), whole);
            for (; m < end; m++) step(m, std::true_type(), whole);
        };
        if (first == 0 && last == KY) row(std::true_type());
        else row(std::false_type());
    }
    UNROLL for (int a = 0; a < KY; a++) UNROLL for (int k = 0; k < K; k++) {
        float* p = to + ((ky + a) * K + k) * VL;
        store(p, load(p) + sums[a][k]);
    }
    if (BIAS) store(to + K * K * VL, load(to + K * K * VL) + total);
}

// The bias's gradient where sum_taps does not give it.
static void sum_pixels(const View& grad, Span y, float* to) {
    vf sum[4] = {};
    for (; y.begin < y.end; y.begin++) {
        const float* g = grad.data + y.begin * grad.row;
        int64_t x = 0;
        for (; x + 4 <= grad.width; x += 4, g += 4 * grad.column)
            for (int k = 0; k < 4; k++) sum[k] += load(g + k * grad.column);
        for (; x < grad.width; x++, g += grad.column) sum[0] += load(g);
    }
    store(to, load(to) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
}

}  // namespace depthwise
