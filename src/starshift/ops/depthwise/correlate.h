// SPDX-License-Identifier: Apache-2.0
// Correlation of a tile with one small filter a channel: the forward convolution, and each phase of its transpose.
//
// R rows x P columns of outputs of one vector of channels stay in registers over all taps. A tap loads its weights once
// and reads the tile as the memory operand of each multiply-add: 15 loads for 14 multiply-adds with 16 registers.
#pragma once
#include "tile.h"

namespace depthwise {

struct Correlation {
    int64_t taps_y, taps_x;            // filter size
    int64_t row;                       // floats from one row of the tile to the next
    int64_t step_y, step_x;            // tile pixels from one output to the next (stride)
    int64_t tap_y, tap_x;              // tile pixels from one tap to the next (dilation)
    Span inside;                       // rows of the tile that lie in the image, counted from the first output's first tap
    const float *weights, *bias;       // (taps_y, taps_x, BLOCK) and (BLOCK)
    int64_t vectors;                   // vectors of channels in use
};

// Where outputs go: floats from one column, and from one row, to the next.
struct Target {
    float* data;
    int64_t column, row;
};

constexpr int rows_at_once(int P) { return (REGISTERS - 2) / P < 4 ? (REGISTERS - 2) / P : 4; }

// KX, SX: taps_x and step_x, with tap_x == 1; KX = 0: any.
template <int KX, int SX, int P, int R>
INLINE void outputs(const Correlation& q, const float* tile, int64_t y, const Target& to) {
    // Taps that lie outside the image for all R rows add nothing.
    int64_t begin = q.inside.begin - (y + R - 1) * q.step_y, end = q.inside.end - y * q.step_y;
    if (q.tap_y != 1) begin = ceil_div(begin, q.tap_y), end = ceil_div(end, q.tap_y);
    if (begin < 0) begin = 0;
    if (end > q.taps_y) end = q.taps_y;
    const int64_t taps_x = KX ? KX : q.taps_x, step_x = KX ? SX : q.step_x, step_y = q.step_y * q.row;
    for (int64_t v = 0; v < q.vectors; v++) {
        vf sums[R][P];
        for (int r = 0; r < R; r++)
            for (int p = 0; p < P; p++) sums[r][p] = load(q.bias + v * VL);
        const float* w = q.weights + begin * taps_x * BLOCK + v * VL;
        const float* x = tile + (y * q.step_y + begin * q.tap_y) * q.row + v * VL;
        for (int64_t i = begin; i < end; i++, x += q.tap_y * q.row) {
            const float* at = x;
#pragma GCC unroll 8
            for (int64_t j = 0; j < taps_x; j++, w += BLOCK, at += KX ? BLOCK : q.tap_x * BLOCK) {
                const vf weight = load(w);
                OPAQUE(at);
                for (int r = 0; r < R; r++)
                    for (int p = 0; p < P; p++) sums[r][p] += weight * load(at + r * step_y + p * step_x * BLOCK);
            }
        }
        for (int r = 0; r < R; r++)
            for (int p = 0; p < P; p++) store(to.data + (y + r) * to.row + p * to.column + v * VL, sums[r][p]);
    }
}

// P columns of outputs, `rows` down.
template <int KX, int SX, int P>
static void strip(const Correlation& q, const float* tile, int64_t rows, const Target& to) {
    constexpr int R = rows_at_once(P);
    int64_t y = 0;
    for (; y + R <= rows; y += R) outputs<KX, SX, P, R>(q, tile, y, to);
    if (R > 2)
        for (; y + 2 <= rows; y += 2) outputs<KX, SX, P, 2>(q, tile, y, to);
    for (; y < rows; y++) outputs<KX, SX, P, 1>(q, tile, y, to);
}

typedef void (*Strip)(const Correlation&, const float*, int64_t, const Target&);

// Widths in which a strip is computed: the two cover every width with little waste.
constexpr int WIDE = 7, NARROW = 4;

template <int P>
inline Strip strip_for(const Correlation& q) {
    if (q.tap_x != 1) return strip<0, 0, P>;
    if (q.step_x == 1) switch (q.taps_x) {
            case 1: return strip<1, 1, P>;
            case 2: return strip<2, 1, P>;
            case 3: return strip<3, 1, P>;
            case 4: return strip<4, 1, P>;
            case 5: return strip<5, 1, P>;
            case 7: return strip<7, 1, P>;
        }
    if (q.step_x == 2) switch (q.taps_x) {
            case 3: return strip<3, 2, P>;
            case 5: return strip<5, 2, P>;
            case 7: return strip<7, 2, P>;
        }
    return strip<0, 0, P>;
}

// How many of the strips that cover `width` are wide; and how many columns the strips compute at most.
inline int64_t wide_strips(int64_t width) {
    int64_t best = 0, least = INT64_MAX;
    for (int64_t wide = 0; wide <= ceil_div(width, WIDE); wide++) {
        int64_t left = width - wide * WIDE, columns = wide * WIDE + (left > 0 ? ceil_div(left, NARROW) * NARROW : 0);
        if (columns <= least) best = wide, least = columns;
    }
    return best;
}
constexpr int64_t OVERSHOOT = 3;

// What happens to a value on its way out: out = residual + sample_scale[n] * value, and two sums a channel.
template <class T>
struct Output {
    T* data;
    const T *residual, *partner;        // partner: the sums are of out and out * (partner - center)
    const float *sample_scale, *center; // else: of value - center and its square
    double* sums;                       // (2, channels); null: none
    int64_t height, width, channels;

    bool plain() const { return !residual && !sample_scale && !sums; }
};

// Pixels of an output image at which a correlation's results go.
struct Pixels {
    int64_t y, x, step_y, step_x, rows, columns;
};

template <class T, int P>
INLINE void finish(const Output<T>& o, int64_t n, int64_t c, const Pixels& at, const float* patch, int64_t y, int64_t x,
                   int64_t vectors, vf sums[2][VECTORS]) {
    const int64_t rows = at.rows - y < rows_at_once(P) ? at.rows - y : rows_at_once(P);
    const int64_t columns = at.columns - x < P ? at.columns - x : P;
    const float scale = o.sample_scale ? o.sample_scale[n] : 1;
    for (int64_t v = 0; v < vectors; v++) {
        const int64_t channel = c + v * VL, left = o.channels - channel;
        const int used = left < VL ? (int)left : VL;
        const vf center = o.center ? load_n(o.center + channel, used) : (vf){};
        vf sum = {}, product = {};
        for (int64_t r = 0; r < rows; r++)
            for (int64_t p = 0; p < columns; p++) {
                const int64_t row = at.y + (y + r) * at.step_y, column = at.x + (x + p) * at.step_x;
                const int64_t to = ((n * o.height + row) * o.width + column) * o.channels + channel;
                const vf value = load(patch + (r * P + p) * BLOCK + v * VL);
                vf out = value;
                if (o.sample_scale) out = out * scale;
                if (o.residual) out = load_n(o.residual + to, used) + out;
                store_n(o.data + to, out, used);
                if (!o.sums) continue;
                if (o.partner) {
                    sum += out;
                    product += out * (load_n(o.partner + to, used) - center);
                } else {
                    sum += value - center;
                    product += (value - center) * (value - center);
                }
            }
        sums[0][v] += sum;
        sums[1][v] += product;
    }
}

// Without anything to do on the way out, whole strips go straight to their place; else small patches go by way of L1.
template <class T>
INLINE bool direct(const Output<T>&, int64_t) {
    return false;
}
template <>
INLINE bool direct(const Output<float>& o, int64_t c) {
    return o.plain() && (o.channels - c >= BLOCK || (o.channels - c) % VL == 0);
}

template <class T, int P>
static void column(const Correlation& q, const float* tile, const Output<T>& o, int64_t n, int64_t c, const Pixels& at,
                   int64_t x, vf sums[2][VECTORS]) {
    constexpr int R = rows_at_once(P);
    const Strip run = strip_for<P>(q);
    tile += x * q.step_x * BLOCK;
    if (direct(o, c) && x + P <= at.columns) {
        const int64_t first = ((n * o.height + at.y) * o.width + at.x + x * at.step_x) * o.channels + c;
        run(q, tile, at.rows,
            {(float*)o.data + first, at.step_x * o.channels, at.step_y * o.width * o.channels});
        return;
    }
    alignas(64) float patch[R * P * BLOCK];
    Correlation from = q;
    for (int64_t y = 0; y < at.rows; y += R) {
        from.inside = {q.inside.begin - y * q.step_y, q.inside.end - y * q.step_y};
        run(from, tile + y * q.step_y * q.row, at.rows - y < R ? at.rows - y : R, {patch, BLOCK, P * BLOCK});
        finish<T, P>(o, n, c, at, patch, y, x, q.vectors, sums);
    }
}

// Correlate the tile at `tile` (the first output's first tap) and write the results to the pixels `at` of sample n.
template <class T>
static void correlate(const Correlation& q, const float* tile, const Output<T>& o, int64_t n, int64_t c,
                      const Pixels& at) {
    if (at.rows <= 0 || at.columns <= 0) return;
    vf sums[2][VECTORS] = {};
    int64_t x = 0;
    for (int64_t wide = wide_strips(at.columns); wide > 0; wide--, x += WIDE)
        column<T, WIDE>(q, tile, o, n, c, at, x, sums);
    for (; x < at.columns; x += NARROW) column<T, NARROW>(q, tile, o, n, c, at, x, sums);
    if (!o.sums) return;
    for (int64_t i = 0; i < BLOCK && c + i < o.channels; i++) {
        o.sums[c + i] += sums[0][i / VL][i % VL];
        o.sums[o.channels + c + i] += sums[1][i / VL][i % VL];
    }
}

}  // namespace depthwise
