// SPDX-License-Identifier: Apache-2.0
// Gradient of the weights: for each tap, the sum over output pixels of gradient times input, from two tiles.
//
// Several rows of taps are summed in registers over a whole tile; a gradient is loaded once for all of them.
#pragma once
#include "tile.h"

namespace depthwise {

struct TapSums {
    const float *grad, *x;        // tiles: the first output pixel, and its first tap
    int64_t grad_row, x_row;      // floats from one row to the next
    int64_t rows, columns;        // output pixels
    int64_t taps_y, taps_x, step_y, step_x, tap_y, tap_x;  // as in Correlation
    Span inside;                  // rows of x that lie in the image, counted from x
    int64_t vectors;
    float* sums;                  // (taps_y taps_x, BLOCK): added to
};

// Output rows for which a tap of rows i .. i + count - 1 lies inside the image.
inline Span rows_inside(const TapSums& q, int64_t i, int64_t count) {
    int64_t begin = ceil_div(q.inside.begin - (i + count - 1) * q.tap_y, q.step_y);
    int64_t end = ceil_div(q.inside.end - i * q.tap_y, q.step_y);
    return {begin < 0 ? 0 : begin, end > q.rows ? q.rows : end};
}

// KY rows of KX taps, from row i on; tap_x == 1 and step_x == SX.
template <int KX, int SX, int KY>
INLINE void sum_taps(const TapSums& q, int64_t i, int64_t v) {
    vf sums[KY][KX] = {};
    const Span rows = rows_inside(q, i, KY);
    const int64_t tap_row = q.tap_y * q.x_row;
    for (int64_t y = rows.begin; y < rows.end; y++) {
        const float* g = q.grad + y * q.grad_row + v * VL;
        const float* x = q.x + (y * q.step_y + i * q.tap_y) * q.x_row + v * VL;
        for (const float* const end = g + q.columns * BLOCK; g != end; g += BLOCK, x += SX * BLOCK) {
            const vf grad = load(g);
            OPAQUE(x);
            for (int a = 0; a < KY; a++)
                for (int b = 0; b < KX; b++) sums[a][b] += grad * load(x + a * tap_row + b * BLOCK);
        }
    }
    for (int a = 0; a < KY; a++)
        for (int b = 0; b < KX; b++) {
            float* to = q.sums + ((i + a) * KX + b) * BLOCK + v * VL;
            store(to, load(to) + sums[a][b]);
        }
}

template <int KX, int SX>
static void sum_all_taps(const TapSums& q) {
    constexpr int FIT = (REGISTERS - 1) / KX, KY = FIT < KX ? FIT : KX, REST = KX % KY;
    for (int64_t v = 0; v < q.vectors; v++) {
        int64_t i = 0;
        for (; i + KY <= q.taps_y; i += KY) sum_taps<KX, SX, KY>(q, i, v);
        if (REST && i + REST <= q.taps_y) sum_taps<KX, SX, REST ? REST : 1>(q, i, v), i += REST;
        for (; i < q.taps_y; i++) sum_taps<KX, SX, 1>(q, i, v);
    }
}

// Any filter, stride and dilation: four taps of a row at a time.
static void sum_any_taps(const TapSums& q) {
    for (int64_t v = 0; v < q.vectors; v++)
        for (int64_t i = 0; i < q.taps_y; i++)
            for (int64_t j = 0; j < q.taps_x; j += 4) {
                const int64_t taps = q.taps_x - j < 4 ? q.taps_x - j : 4;
                vf sums[4] = {};
                int64_t offset[4];
                for (int b = 0; b < 4; b++) offset[b] = (j + (b < taps ? b : 0)) * q.tap_x * BLOCK;
                const Span rows = rows_inside(q, i, 1);
                for (int64_t y = rows.begin; y < rows.end; y++) {
                    const float* g = q.grad + y * q.grad_row + v * VL;
                    const float* x = q.x + (y * q.step_y + i * q.tap_y) * q.x_row + v * VL;
                    for (int64_t p = 0; p < q.columns; p++, g += BLOCK, x += q.step_x * BLOCK)
                        for (int b = 0; b < 4; b++) sums[b] += load(g) * load(x + offset[b]);
                }
                for (int64_t b = 0; b < taps; b++) {
                    float* to = q.sums + (i * q.taps_x + j + b) * BLOCK + v * VL;
                    store(to, load(to) + sums[b]);
                }
            }
}

static void add_tap_sums(const TapSums& q) {
    if (q.tap_x == 1 && q.step_x == 1) switch (q.taps_x) {
            case 3: return sum_all_taps<3, 1>(q);
            case 5: return sum_all_taps<5, 1>(q);
            case 7: return sum_all_taps<7, 1>(q);
        }
    if (q.tap_x == 1 && q.step_x == 2) switch (q.taps_x) {
            case 3: return sum_all_taps<3, 2>(q);
            case 5: return sum_all_taps<5, 2>(q);
            case 7: return sum_all_taps<7, 2>(q);
        }
    sum_any_taps(q);
}

// Gradient of the bias: the sum of the gradients.
static void add_pixel_sums(const TapSums& q, float* sums) {
    for (int64_t v = 0; v < q.vectors; v++) {
        vf sum[4] = {};
        for (int64_t y = 0; y < q.rows; y++) {
            const float* g = q.grad + y * q.grad_row + v * VL;
            int64_t p = 0;
            for (; p + 4 <= q.columns; p += 4, g += 4 * BLOCK)
                for (int b = 0; b < 4; b++) sum[b] += load(g + b * BLOCK);
            for (; p < q.columns; p++, g += BLOCK) sum[0] += load(g);
        }
        store(sums + v * VL, load(sums + v * VL) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
    }
}

}  // namespace depthwise
