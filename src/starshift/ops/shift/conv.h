// SPDX-License-Identifier: Apache-2.0
// Shift and 1x1 convolution: a matrix product whose left operand is packed from displaced addresses.
#pragma once
#include "chunks.h"
#include "displaced.h"

constexpr int64_t CHANNELS = 8 * PANEL;  // of the input at a time

// Weights (K, C) as conv_packed reads them, then the bias (null: zeros).
template <class Unit = Floats>
inline int64_t packed_size(const Shape& s) { return s.k() * (words<Unit>(s.C) + 1); }

template <class Unit = Floats>
inline void pack_conv(const Shape& s, const float* w, const float* bias, float* to) {
    for (int64_t c0 = 0; c0 < s.C; c0 += CHANNELS) {
        const int64_t n = least(CHANNELS, s.C - c0);
        pack_panels<Unit>(w + c0, s.C, 1, n, s.K, n, to + words<Unit>(c0) * s.k(), 0, 1);
    }
    copy_padded(bias, s.K, s.k(), to + words<Unit>(s.C) * s.k());
}

// finish(result, space, first, rows): panels of `space` lines, so many rows (pixels) of the result from `first` on.
template <class Unit = Floats, class T, class F>
void conv_packed(const Shape& s, const int64_t* offsets, int64_t runs, const T* x, const float* packed,
                 int64_t threads, const F& finish) {
    Table<vi> table(offsets, runs, s.C, 1, false);
    const float* biases = packed + words<Unit>(s.C) * s.k();
    parallel(threads, [&](int64_t thread, int64_t of) {
        Range share_of_rows = share(s.N * s.Ho(), thread, of);
        int64_t space = s.space(), panel = space * PANEL;
        const int64_t most_panels = panels(least(CHANNELS, s.C));
        const Operand<Unit> left(space, most_panels, LEFT);
        auto* lines = reinterpret_cast<typename Unit::Stored*>(left.left(0));
        Scratch result(space * s.k());
        for (int64_t r = share_of_rows.begin; r < share_of_rows.end; r += s.chunk()) {
            int64_t last = least(r + s.chunk(), share_of_rows.end);
            for (int64_t c0 = 0; c0 < s.C; c0 += CHANNELS) {
                int64_t n = least(CHANNELS, s.C - c0);
                const int64_t rows = (last - r) * s.Wo();
                pack_displaced(table, s, x, {c0 / VL, (c0 + n + VL - 1) / VL}, r, last, space, lines);
                Term term{left.left(0), left.panel, packed + words<Unit>(c0) * s.k(), words<Unit>(n)};
                if (c0 == 0)
                    product<Unit>(term, rows, 0, panels(s.K), s.K, (float*)result, panel, Bias{biases});
                else
                    product<Unit>(term, rows, 0, panels(s.K), s.K, result, panel, true);
            }
            finish(result, space, r * s.Wo(), (last - r) * s.Wo());
        }
    });
}

template <class T>
void conv_forward(const Shape& s, const int64_t* offsets, int64_t runs, const T* x, const float* w, const float* bias,
                  T* out, int64_t threads) {
    using Unit = UnitOf<T>;
    Scratch packed(packed_size<Unit>(s));
    pack_conv<Unit>(s, w, bias, packed);
    conv_packed<Unit>(s, offsets, runs, x, packed, threads, [&](const float* result, int64_t space, int64_t first, int64_t rows) {
        unpack_rows(result, space, first, rows, s.K, out);
    });
}

// The weight gradient as one thread gathers it: blocks [C / 16][K / 16] of 16 x 16, then the bias gradient.
INLINE int64_t gradient_size(const Shape& s) { return s.c() * s.k() + s.k(); }

// Panels of `in` and dz as right operands, `panel` words from one to the next; rows in words.
template <class Unit = Floats>
INLINE void add_weight_gradient(const Shape& s, const float* in, const float* dz, int64_t panel, int64_t rows,
                                int64_t first_panel, int64_t last_panel, float* to) {
    constexpr int64_t BLOCK = PANEL * PANEL;
    for (int64_t p = first_panel; p < last_panel; p++, in += panel)
        outers<Unit>(in, dz, panel, rows, s.K, to + p * panels(s.K) * BLOCK, BLOCK);
}

// Adds up what the threads have, in their order, and writes it out row-major: (K, C), or transposed (C, K).
inline void finish_weight_gradient(const Shape& s, float* parts, int64_t threads, float* gw, float* gb,
                                   bool transposed = false) {
    int64_t size = gradient_size(s);
    for (int64_t t = 1; t < threads; t++)
        for (int64_t i = 0; i < size; i++) parts[i] += parts[t * size + i];
    for (int64_t k = 0; k < s.K; k++)
        for (int64_t c = 0; c < s.C; c++)
            gw[transposed ? c * s.K + k : k * s.C + c] = parts[((c / PANEL * panels(s.K) + k / PANEL) * PANEL + c % PANEL) * PANEL + k % PANEL];
    for (int64_t k = 0; gb && k < s.K; k++) gb[k] = parts[s.c() * s.k() + k];
}

template <class T>
void conv_backward(const Shape& s, const int64_t* offsets, int64_t runs, const T* grad, const T* x, const float* w,
                   T* gx, float* gw, float* gb, int64_t threads) {
    using Unit = UnitOf<T>;
    constexpr int64_t BLOCK = 8 * PANEL, PIXELS = 2048;  // channels and pixels at a time
    threads = most(1, least(threads, s.N));
    Table<vi> table(offsets, runs, s.C, 1, false), back(offsets, runs, s.C, -1, false);
    int64_t size = gradient_size(s), images = most(1, PIXELS / (s.H * s.W));
    Scratch packed(words<Unit>(s.K) * s.c()), parts(threads * size);
    pack_panels<Unit>(w, 1, s.C, s.K, s.C, s.K, packed, 0, 1);
    clear(parts, threads * size);
    parallel(threads, [&](int64_t thread, int64_t of) {
        Range all = share(s.N, thread, of);
        float* mine = parts + thread * size;
        int64_t space = s.space(), Wo = s.Wo();
        using Stored = typename Unit::Stored;
        Ring<Stored> ring(s, table.reach, panels(least(BLOCK, s.c())));
        const Operand<Unit> in(space, panels(least(BLOCK, s.C)), BOTH), dz(space, panels(s.K), BOTH);
        Rows<T> grads{grad, nullptr, nullptr, nullptr, nullptr, s.K};
        for (int64_t n = all.begin; n < all.end; n += images) {
            int64_t end = least(n + images, all.end), origin = n * s.Ho();
            for (int64_t c0 = 0; c0 < s.C; c0 += BLOCK) {
                int64_t c1 = least(c0 + BLOCK, s.C), p0 = c0 / PANEL, p1 = panels(c1);
                Range groups{c0 / VL, (c1 + VL - 1) / VL};
                auto make = [&](int64_t first, int64_t last, Stored* to) {
                    int64_t rows = (last - first) * Wo;
                    pack_operand(grads, (origin + first) * Wo, rows, space, dz, c0 ? nullptr : mine + s.c() * s.k());
                    pack_displaced(table, s, x, groups, origin + first, origin + last, space,
                                   reinterpret_cast<Stored*>(in.left(0)));
                    for (int64_t p = 0; p < p1 - p0; p++) lines_to_right<Unit>(in.left(p), rows, in.right(p));
                    add_weight_gradient<Unit>(s, in.right(0), dz.right(0), dz.panel, words<Unit>(rows), p0, p1, mine);
                    Term term{dz.left(0), dz.panel, packed, words<Unit>(s.K)};
                    product<Unit>(term, rows, p0, p1, s.C, to - p0 * ring.panel, ring.panel, Sum{false});
                };
                auto done = [&](int64_t image, int64_t y) {
                    T* line = gx + (image * s.H + y) * s.W * s.C;
                    collect_row(back, s, ring, groups, n, image, y, [&](const Group<vi>& group) {
                        T* at = line + group.channel;
                        int lanes = (int)group.n;
                        return [=](int64_t p, vf value) { store_n(at + p * s.C, value, lanes); };
                    });
                };
                through_ring(s, ring, table.reach, n, end, make, done);
            }
        }
    });
    finish_weight_gradient(s, parts, threads, gw, gb);
}
