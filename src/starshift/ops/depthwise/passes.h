// SPDX-License-Identifier: Apache-2.0
// The passes of a geometry behind one interface: walk.h where its filter and stride have one, else plain loops.
#pragma once
#include "walk.h"

namespace depthwise {

struct Geometry {
    int64_t samples, channels, height, width, out_height, out_width;
    int64_t taps_y, taps_x, stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x;

    int64_t taps() const { return taps_y * taps_x; }
    // Rows of the input that output rows y read, and rows of the output that input rows y are read for.
    Span read_by(Span y) const {
        return clip({y.begin * stride_y - padding_y, (y.end - 1) * stride_y - padding_y + (taps_y - 1) * dilation_y + 1},
                    height);
    }
    Span reading(Span y) const {
        return clip({ceil_div(y.begin + padding_y - (taps_y - 1) * dilation_y, stride_y),
                     floor_div(y.end - 1 + padding_y, stride_y) + 1},
                    out_height);
    }
};

// Where to prefetch what comes next: floats from what is read, and from what is written; 0: nothing.
struct Ahead {
    int64_t from, to;
};

// A view's rows begin at row `first` of the image. weights: (taps_y, taps_x, VL) and the bias (VL), or by pack_pairs.
struct Passes {
    int64_t rows;  // at most, of `convolve` and `transpose`
    bool flipped;  // `convolve` takes its weights in reverse
    void (*convolve)(const Geometry&, const View& x, int64_t first, Span y, const float* weights, const Target&, Ahead);
    void (*transpose)(const Geometry&, const View& grad, int64_t first, Span y, const float* weights, const Target&, Ahead);
    void (*sum)(const Geometry&, const View& grad, int64_t grad_first, Span y, const View& x, int64_t x_first, float* to, int64_t ahead);
    bool pairs = false;  // tiles and weights are those of pairs.h

    int64_t per_vector(const Geometry& g) const { return (g.taps() + (pairs ? g.taps_x : 0) + 1) * VL; }  // of weights
};

alignas(64) static const float ZERO[VL] = {};

// Outputs o whose tap at `offset` meets a column of the input.
inline Span meeting(const Geometry& g, int64_t offset) {
    return clip({ceil_div(-offset, g.stride_x), ceil_div(g.width - offset, g.stride_x)}, g.out_width);
}

// The gradients of weights and bias, term by term. grad(row, column) and x(row, column): of the image.
template <class Grad, class X>
static void sum_each(const Geometry& g, Span y, float* to, const Grad& grad, const X& x) {
    for (int64_t ky = 0; ky < g.taps_y; ky++)
        for (int64_t kx = 0; kx < g.taps_x; kx++, to += VL) {
            const int64_t offset = kx * g.dilation_x - g.padding_x;
            const Span at = meeting(g, offset);
            vf sum = {};
            for (int64_t o_y = y.begin; o_y < y.end; o_y++) {
                const int64_t row = o_y * g.stride_y - g.padding_y + ky * g.dilation_y;
                if (row < 0 || row >= g.height) continue;
                for (int64_t o = at.begin; o < at.end; o++) sum += grad(o_y, o) * x(row, o * g.stride_x + offset);
            }
            store(to, load(to) + sum);
        }
    vf total = {};
    for (int64_t o_y = y.begin; o_y < y.end; o_y++)
        for (int64_t o = 0; o < g.out_width; o++) total += grad(o_y, o);
    store(to, load(to) + total);
}

static void sum_any(const Geometry& g, const View& grad, int64_t grad_first, Span y, const View& x, int64_t x_first,
                    float* to, int64_t) {
    sum_each(g, y, to, [&](int64_t row, int64_t column) __attribute__((always_inline)) {
        return load(grad.data + (row - grad_first) * grad.row + column * grad.column);
    }, [&](int64_t row, int64_t column) __attribute__((always_inline)) {
        return load(x.data + (row - x_first) * x.row + column * x.column);
    });
}

// The fast passes also multiply by the zeros that stand for outputs beside the image. Where that made something that is
// not finite, they are taken back, and the terms that there are summed alone.
template <int K, class Fast, class Exact>
static void sum_finite(float* to, const Fast& fast, const Exact& exact) {
    constexpr int VALUES = K * K + 1;
    alignas(64) float before[VALUES * VL];
    memcpy(before, to, sizeof before);
    fast();
    vf nothing = {};
    for (int i = 0; i < VALUES; i++) nothing += load(to + i * VL) - load(to + i * VL);
    if (sum(nothing) == 0) return;
    memcpy(to, before, sizeof before);
    exact();
}

template <int K, int S, int R>
static void transpose_group(const View& grad, int64_t q, int64_t padding, int64_t columns, const float* weights,
                            const float* bias, const Target& to, Span inside, Ahead ahead) {
    constexpr int BEFORE = (K + S - 1) / S - 1;
    const bool whole = q >= BEFORE && q + (R - 1) / S < grad.height && inside.size() == R;
    (whole ? transpose_rows<K, S, R, true> : transpose_rows<K, S, R, false>)(grad, q, padding, columns, weights, bias, to,
                                                                            inside, ahead.from, ahead.to);
}

template <int K, int S, int R>
static void convolve_group(const Geometry& g, const View& x, int64_t first, Span& y, const float* weights, Target& to,
                           Ahead ahead) {
    const float* bias = weights + K * K * VL;
    for (; y.begin + R <= y.end; y.begin += R, to.data += R * to.row) {
        const int64_t top = y.begin * S - g.padding_y - first;
        if (S == 1)
            transpose_group<K, 1, R>(x, top + K - 1, K - 1 - g.padding_x, g.out_width, weights, bias, to, {0, R}, ahead);
        else if (top >= 0 && top + (R - 1) * S + K <= x.height)
            convolve_rows<K, S, R, true>(x, top, g.padding_x, g.out_width, weights, bias, to, ahead.from, ahead.to);
        else
            convolve_rows<K, S, R, false>(x, top, g.padding_x, g.out_width, weights, bias, to, ahead.from, ahead.to);
    }
}

template <int K, int S>
struct Walk {
    static constexpr int R = rows_at_once(K, S), KY = tap_rows(K, S);

    static void convolve(const Geometry& g, const View& x, int64_t first, Span y, const float* weights, const Target& to,
                         Ahead ahead) {
        Target next = to;
        convolve_group<K, S, R>(g, x, first, y, weights, next, ahead);
        convolve_group<K, S, 2>(g, x, first, y, weights, next, ahead);
        convolve_group<K, S, 1>(g, x, first, y, weights, next, ahead);
    }
    static void transpose(const Geometry& g, const View& grad, int64_t first, Span y, const float* weights,
                          const Target& to, Ahead ahead) {
        int64_t row = y.begin;
        if (S == 1) {
            for (; row + R <= y.end; row += R) one<R>(g, grad, first, row, {0, R}, weights, to, y, ahead);
            for (; row + 2 <= y.end; row += 2) one<2>(g, grad, first, row, {0, 2}, weights, to, y, ahead);
            for (; row < y.end; row++) one<1>(g, grad, first, row, {0, 1}, weights, to, y, ahead);
            return;
        }
        while (row < y.end) {  // groups begin where S rows of the result begin a row of grad
            const int64_t start = floor_div(row + g.padding_y, S) * S - g.padding_y;
            const Span inside = {row - start, least(y.end - start, R)};
            one<R>(g, grad, first, start, inside, weights, to, y, ahead);
            row = start + R;
        }
    }
    template <int ROWS>
    static void one(const Geometry& g, const View& grad, int64_t first, int64_t row, Span inside, const float* weights,
                    const Target& to, Span y, Ahead ahead) {
        constexpr int USED = ROWS % S == 0 ? ROWS : S;
        transpose_group<K, S, USED>(grad, (row + g.padding_y) / S - first, g.padding_x, g.width, weights, ZERO,
                                    {to.data + (row - y.begin) * to.row, to.row, to.column, to.past_caches}, inside, ahead);
    }
    static void sum(const Geometry& g, const View& grad, int64_t grad_first, Span y, const View& x, int64_t x_first,
                    float* to, int64_t ahead) {
        const Span rows = {y.begin - grad_first, y.end - grad_first};
        const int64_t lead = g.padding_y - grad_first * S + x_first;
        sum_finite<K>(to, [&] {
            int ky = 0;
            for (; ky + KY <= K; ky += KY) sum_taps<K, S, KY>(grad, rows, x, lead, g.padding_x, ky, to, ky ? 0 : ahead);
            if (K % KY) sum_taps<K, S, K % KY ? K % KY : 1>(grad, rows, x, lead, g.padding_x, ky, to, 0);
            if (KY < K) sum_pixels(grad, rows, to + K * K * VL);
        }, [&] { sum_any(g, grad, grad_first, y, x, x_first, to, 0); });
    }
    static constexpr Passes passes = {R, S == 1, convolve, transpose, sum};
};

// Any geometry: one row, and one tap, at a time.
static void convolve_any(const Geometry& g, const View& x, int64_t first, Span y, const float* weights, const Target& to,
                         Ahead) {
    for (int64_t o = 0; o < g.out_width; o++) store(to.data + o * to.column, load(weights + g.taps() * VL));
    for (int64_t ky = 0; ky < g.taps_y; ky++) {
        const int64_t row = y.begin * g.stride_y - g.padding_y + ky * g.dilation_y - first;
        if (row < 0 || row >= x.height) continue;
        for (int64_t kx = 0; kx < g.taps_x; kx++) {
            const int64_t offset = kx * g.dilation_x - g.padding_x;
            const vf weight = load(weights + (ky * g.taps_x + kx) * VL);
            const Span at = meeting(g, offset);
            for (int64_t o = at.begin; o < at.end; o++) {
                float* p = to.data + o * to.column;
                store(p, load(p) + weight * load(x.data + row * x.row + (o * g.stride_x + offset) * x.column));
            }
        }
    }
}

static void transpose_any(const Geometry& g, const View& grad, int64_t first, Span y, const float* weights,
                          const Target& to, Ahead) {
    for (int64_t x = 0; x < g.width; x++) store(to.data + x * to.column, (vf){});
    for (int64_t ky = 0; ky < g.taps_y; ky++) {
        const int64_t at_row = y.begin + g.padding_y - ky * g.dilation_y, row = floor_div(at_row, g.stride_y) - first;
        if (at_row % g.stride_y != 0 || row < 0 || row >= grad.height) continue;
        for (int64_t kx = 0; kx < g.taps_x; kx++) {
            const int64_t offset = kx * g.dilation_x - g.padding_x;
            const vf weight = load(weights + (ky * g.taps_x + kx) * VL);
            const Span at = meeting(g, offset);
            for (int64_t o = at.begin; o < at.end; o++) {
                float* p = to.data + (o * g.stride_x + offset) * to.column;
                store(p, load(p) + weight * load(grad.data + row * grad.row + o * grad.column));
            }
        }
    }
}

static const Passes ANY = {1, false, convolve_any, transpose_any, sum_any};

static const Passes& passes_of(const Geometry& g) {
    const int64_t k = g.taps_x, s = g.stride_x;
    if (g.taps_y != k || g.stride_y != s || g.dilation_y != 1 || g.dilation_x != 1) return ANY;
    if (s == 1 && g.padding_x < k && g.padding_y < k) {
        if (k == 3) return Walk<3, 1>::passes;
        if (k == 5) return Walk<5, 1>::passes;
        if (k == 7) return Walk<7, 1>::passes;
    }
    if (s == 2 && g.padding_x < k && g.padding_y < k) {
        if (k == 3) return Walk<3, 2>::passes;
        if (k == 5) return Walk<5, 2>::passes;
        if (k == 7) return Walk<7, 2>::passes;
    }
    return ANY;
}

}  // namespace depthwise
