// SPDX-License-Identifier: Apache-2.0
// The passes of walk.h for tensors of bfloat16, square filters of 3, 5 and 7 and stride 1, where the machine adds up products
// of pairs (units.h).
//
// A tile has two rows of the image in one: a word holds the values of both. A filter's rows meet them two at a time, and the
// one that is left over alone, as floats; so no row is multiplied that does not belong to a sum.
#pragma once
#include "units.h"
#include "passes.h"

#ifdef HAS_PAIRS
namespace depthwise {

static_assert(VL == BLOCK, "a tile is one vector wide");

INLINE vf upper(vf word) { return (vf)((vu)word << 16); }
INLINE vf lower(vf word) { return (vf)((vu)word & 0xffff0000); }

template <bool FULL, bool PLAIN, bool OTHER>
static void fill_two_rows(const Source<bf16>& s, int64_t n, int64_t c, Span rows, int64_t start, float* tile) {
    const Reader<bf16> read(s, n, c);
    const int64_t next = s.width * s.channels;
    for (int64_t y = start; y < rows.end; y += 2) {
        const int64_t at = (n * s.height + y) * next + c;
        auto value = [&](int64_t i) __attribute__((always_inline)) {
            return read.template value<FULL, PLAIN, OTHER>(s.tensor + i, OTHER ? s.other + i : nullptr);
        };
        auto each = [&](auto first, auto second) __attribute__((always_inline)) {
            for (int64_t i = at; i < at + next; i += s.channels, tile += VL) {
                const vf a = first ? value(i) : (vf){}, b = second ? value(i + next) : (vf){};
                vf lines, words = (vf)(((vu)a >> 16) | (vu)b);
                if (!PLAIN) Pairs::join(a, b, lines, words);
                store(tile, words);
            }
        };
        if (y < rows.begin) each(std::false_type(), std::true_type());
        else if (y + 1 == rows.end) each(std::true_type(), std::false_type());
        else each(std::true_type(), std::true_type());
    }
}

// As fill, two rows at a time from `start` on; of those that are not in `rows` zeros.
static void fill_pairs(const Source<bf16>& s, int64_t n, int64_t c, Span rows, int64_t start, float* tile) {
    const bool full = s.channels - c >= BLOCK, plain = s.plain(), other = s.other;
    auto run = full ? plain ? fill_two_rows<true, true, false>
                    : other ? fill_two_rows<true, false, true>
                            : fill_two_rows<true, false, false>
               : plain ? fill_two_rows<false, true, false>
               : other ? fill_two_rows<false, false, true>
                       : fill_two_rows<false, false, false>;
    run(s, n, c, rows, start, tile);
}

// Of one vector of channels, from its filter (K, K, VL) and bias (VL). Row t of a filter here is the one that meets the t-th row
// of what an output sees: rows t and t + 1 in pairs, for every t; rows 0 and K - 1 as floats; the bias.
static void pack_pairs(int64_t k, const float* filter, float* to) {
    auto row = [&](int64_t t) { return filter + (k - 1 - t) * k * VL; };
    for (int64_t t = 0; t + 1 < k; t++)
        for (int64_t x = 0; x < k; x++, to += VL) {
            vf lines, words;
            Pairs::join(load(row(t) + x * VL), load(row(t + 1) + x * VL), lines, words);
            store(to, words);
        }
    memcpy(to, row(0), k * VL * sizeof(float));
    memcpy(to + k * VL, row(k - 1), k * VL * sizeof(float));
    memcpy(to + 2 * k * VL, filter + k * k * VL, VL * sizeof(float));
}

// transpose_rows with stride 1: R rows, the first of which sees rows from that on with which word `top` begins.
template <int K, int R, bool WHOLE, class T>
static void transpose_pairs(const View x, int64_t top, int64_t padding, int64_t columns, const float* weights,
                            const Target to) {
    constexpr int ROWS = (R + K) / 2;
    const float* const bias = weights + (K + 1) * K * VL;
    vf sums[R][K];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int k = 0; k < K; k++) sums[r][k] = load(bias);
    const int64_t first = WHOLE ? 0 : most(0, -top), last = WHOLE ? ROWS : least(ROWS, x.height - top);
    const float* const rows = x.data + top * x.row;
    const int64_t end = columns + padding;
    for (int64_t o = 0; o < end; o++) {
        if (o < x.width) {
            const float* at = rows + o * x.column;
            UNROLL for (int i = 0; i < ROWS; i++) {
                if (!WHOLE && (i < first || i >= last)) continue;
                const vf word = load(at + i * x.row);
                const float* w = weights;
                OPAQUE(w);
                UNROLL for (int r = 0; r < R; r++) {
                    const int t = 2 * i - r;
                    if (t >= 0 && t + 1 < K)
                        UNROLL for (int k = 0; k < K; k++)
                            sums[r][k] = Pairs::add_product(sums[r][k], word, load(w + (t * K + k) * VL));
                    if (t == -1)
                        UNROLL for (int k = 0; k < K; k++) sums[r][k] += lower(word) * load(w + ((K - 1) * K + k) * VL);
                    if (t == K - 1)
                        UNROLL for (int k = 0; k < K; k++) sums[r][k] += upper(word) * load(w + (K * K + k) * VL);
                }
            }
        }
        const int64_t column = o - padding;
        if (column >= 0)
            UNROLL for (int r = 0; r < R; r++) store((T*)to.data + r * to.row + column * to.column, sums[r][0]);
        UNROLL for (int r = 0; r < R; r++) {
            UNROLL for (int k = 0; k + 1 < K; k++) sums[r][k] = sums[r][k + 1];
            sums[r][K - 1] = load(bias);
        }
    }
}

// sum_taps for the taps of rows ky, ky + 2, .. (KY of them). Words of grad hold rows first and first + 1, ..., those of x
// rows x_first and x_first + 1, ...; where rows of grad meet no word of x, words are made of two halves.
template <int K, int KY>
static void sum_pairs(const Geometry& g, const View& grad, int64_t first, Span y, const View& x, int64_t x_first, int ky,
                      float* to) {
    vf sums[KY][K] = {};
    const int64_t lead = x_first + g.padding_y - ky;  // the row of grad whose tap ky meets row x_first
    int64_t o = y.begin - ((y.begin - lead) & 1);
    const bool halves = (o - first) & 1;
    for (; o < y.end; o += 2) {
        const int64_t word = floor_div(o - first, 2), top = (o - lead) / 2;
        vu masks[KY];  // of the values of a word that belong to the sum
        bool whole = true, none = true;
        for (int a = 0; a < KY; a++) {
            const int64_t row = o - g.padding_y + ky + 2 * a;
            const bool one = o >= y.begin && row >= 0 && row < g.height;
            const bool two = o + 1 < y.end && row + 1 >= 0 && row + 1 < g.height;
            masks[a] = (vu){} + ((one ? 0xffffu : 0) | (two ? 0xffff0000u : 0));
            whole = whole && one && two;
            none = none && !one && !two;
        }
        if (none) continue;
        const bool one_half = word < 0 || word + 1 >= grad.height;
        auto gradient = [&](int64_t column, auto put_together) __attribute__((always_inline)) {
            const float* at = grad.data + word * grad.row + column * grad.column;
            if (!put_together) return load(at);
            if (one_half) return (vf)(word < 0 ? (vu)load(at + grad.row) << 16 : (vu)load(at) >> 16);
            return (vf)((vu)load(at) >> 16 | (vu)load(at + grad.row) << 16);
        };
        const float* rows = x.data + top * x.row;
        vf grads[K] = {};
        auto step = [&](int64_t m, auto checked, auto put_together, auto all) __attribute__((always_inline)) {
            UNROLL for (int d = K - 1; d > 0; d--) grads[d] = grads[d - 1];
            grads[0] = !checked || m < grad.width ? gradient(m, put_together) : (vf){};
            const int64_t column = m - g.padding_x;
            if (checked && (column < 0 || column >= x.width)) return;
            const float* at = rows + column * x.column;
            UNROLL for (int a = 0; a < KY; a++) {
                const vu mask = masks[a];
                if (all) {
                    const vf value = load(at + a * x.row);
                    UNROLL for (int d = 0; d < K; d++) sums[a][d] = Pairs::add_product(sums[a][d], value, grads[d]);
                } else if (mask[0]) {
                    const vf value = (vf)((vu)load(at + a * x.row) & mask);
                    UNROLL for (int d = 0; d < K; d++)
                        sums[a][d] = Pairs::add_product(sums[a][d], value, (vf)((vu)grads[d] & mask));
                }
            }
        };
        auto row = [&](auto put_together, auto all) __attribute__((always_inline)) {
            const int64_t end = grad.width + K - 1, full = least(x.width + g.padding_x, grad.width);
            int64_t m = 0;
            for (; m < g.padding_x && m < end; m++) step(m, std::true_type(), put_together, all);
            for (; m < full; m++) step(m, std::false_type(), put_together, all);
            for (; m < end; m++) step(m, std::true_type(), put_together, all);
        };
        if (halves) {
            if (whole) row(std::true_type(), std::true_type());
            else row(std::true_type(), std::false_type());
        } else {
            if (whole) row(std::false_type(), std::true_type());
            else row(std::false_type(), std::false_type());
        }
    }
    UNROLL for (int a = 0; a < KY; a++) UNROLL for (int k = 0; k < K; k++) {
        float* p = to + ((ky + 2 * a) * K + k) * VL;
        store(p, load(p) + sums[a][k]);
    }
}

template <int K>
struct PairWalk {
    static constexpr int R = rows_at_once(K, 1);

    template <int ROWS>
    static void group(const View& x, int64_t top, int64_t padding, int64_t columns, const float* weights, const Target& to) {
        const bool whole = top >= 0 && top + (ROWS + K) / 2 <= x.height;
        auto run = to.narrow ? (whole ? transpose_pairs<K, ROWS, true, bf16> : transpose_pairs<K, ROWS, false, bf16>)
                             : (whole ? transpose_pairs<K, ROWS, true, float> : transpose_pairs<K, ROWS, false, float>);
        run(x, top, padding, columns, weights, to);
    }
    // Rows y of a result whose row sees as its first the row `lead` before it.
    static void rows(const View& x, int64_t first, int64_t lead, Span y, int64_t padding, int64_t columns,
                     const float* weights, const Target& to) {
        for (int64_t row = y.begin; row < y.end;) {
            const int64_t top = (row - lead - first) / 2, left = y.end - row;  // tiles begin where the first is even
            Target at = to;
            at.data = to.narrow ? (float*)((bf16*)to.data + (row - y.begin) * to.row) : to.data + (row - y.begin) * to.row;
            if (left >= R) group<R>(x, top, padding, columns, weights, at), row += R;
            else if (left >= 2) group<2>(x, top, padding, columns, weights, at), row += 2;
            else group<1>(x, top, padding, columns, weights, at), row++;
        }
    }
    static void convolve(const Geometry& g, const View& x, int64_t first, Span y, const float* weights, const Target& to,
                         Ahead) {
        rows(x, first, g.padding_y, y, K - 1 - g.padding_x, g.out_width, weights, to);
    }
    static void transpose(const Geometry& g, const View& grad, int64_t first, Span y, const float* weights,
                          const Target& to, Ahead) {
        rows(grad, first, K - 1 - g.padding_y, y, g.padding_x, g.width, weights, to);
    }
    static void sum(const Geometry& g, const View& grad, int64_t first, Span y, const View& x, int64_t x_first, float* to,
                    int64_t) {
        auto value = [](const View& from, int64_t row, int64_t column) __attribute__((always_inline)) {
            const vf word = load(from.data + row / 2 * from.row + column * from.column);
            return row & 1 ? lower(word) : upper(word);
        };
        sum_finite<K>(to, [&] { sum_words(g, grad, first, y, x, x_first, to); }, [&] {
            sum_each(g, y, to, [&](int64_t row, int64_t column) { return value(grad, row - first, column); },
                     [&](int64_t row, int64_t column) { return value(x, row - x_first, column); });
        });
    }
    static void sum_words(const Geometry& g, const View& grad, int64_t first, Span y, const View& x, int64_t x_first, float* to) {
        constexpr int EVEN = (K + 1) / 2, ODD = K / 2;  // rows of taps; as many at a time as registers hold
        if constexpr (EVEN > 3) {
            sum_pairs<K, 2>(g, grad, first, y, x, x_first, 0, to);
            sum_pairs<K, EVEN - 2>(g, grad, first, y, x, x_first, 4, to);
        } else {
            sum_pairs<K, EVEN>(g, grad, first, y, x, x_first, 0, to);
        }
        sum_pairs<K, ODD>(g, grad, first, y, x, x_first, 1, to);
        vf total[2] = {};
        const vf ones = (vf)((vu){} + 0x3f803f80u);
        for (int64_t row = y.begin - ((y.begin - first) & 1); row < y.end; row += 2) {
            const vu mask = (vu){} + ((row >= y.begin ? 0xffffu : 0) | (row + 1 < y.end ? 0xffff0000u : 0));
            const float* at = grad.data + (row - first) / 2 * grad.row;
            for (int64_t o = 0; o < grad.width; o++, at += grad.column)
                total[o & 1] = Pairs::add_product(total[o & 1], (vf)((vu)load(at) & mask), ones);
        }
        store(to + K * K * VL, load(to + K * K * VL) + (total[0] + total[1]));
    }
    static constexpr Passes passes = {R, true, convolve, transpose, sum, true};
};

}  // namespace depthwise
#endif
