// SPDX-License-Identifier: Apache-2.0
// w2 act(w1 x + b1) + b2 and its gradients, without the hidden units in memory: rows in chunks that stay in cache, hidden
// units in groups. Backward makes the hidden units again. As star's kernels, with one branch.
#pragma once
#include "activate.h"
#include "chunks.h"

// In: d, the hidden units without bias; h, the gradient of what they became. Out: d, their gradient, whose column sums
// are added; h, what they became.
using ActivateBackward = void (*)(float* h, float* d, const float* b, float* sums, int64_t rows);
template <class Act>
void activate_backward(float* h, float* d, const float* b, float* sums, int64_t rows) {
    for (int v = 0; v < PANEL; v += VL) {
        const vf bias = load(b + v);
        vf total = {};
        for (int64_t i = v; i < rows * PANEL; i += PANEL) {
            const vf z = load(d + i) + bias, g = Act::backward(load(h + i), z);
            store(h + i, Act::forward(z));
            store(d + i, g);
            total += g;
        }
        store(sums + v, load(sums + v) + total);
    }
}

template <class T>
void mlp_forward(const Sizes& s, const T* x, const float* w1, const float* b1, const float* w2, const float* b2,
                 int64_t act, T* out, int64_t threads) {
    using Unit = UnitOf<T>;
    constexpr int64_t GROUP = 8;  // panels of hidden units at a time
    threads = most(1, least(threads, s.M / ROW_MULTIPLE));
    const int64_t up_size = s.k() * words<Unit>(s.C), down_size = words<Unit>(s.k()) * s.n();
    Scratch packed(up_size + down_size + s.k() + s.n());
    float *p1 = packed, *p2 = p1 + up_size, *bias1 = p2 + down_size, *bias2 = bias1 + s.k();
    parallel(threads, [&](int64_t t, int64_t of) {
        pack_panels<Unit>(w1, s.C, 1, s.C, s.K, s.C, p1, t, of);
        pack_panels<Unit>(w2, s.K, 1, s.k(), s.N, s.K, p2, t, of);
    });
    copy_padded(b1, s.K, s.k(), bias1);
    copy_padded(b2, s.N, s.n(), bias2);
    Activate activation = nullptr;
    with_activation(act, [&](auto a) { activation = activate<decltype(a)>; });
    const Rows<T> from{x, nullptr, nullptr, nullptr, nullptr, s.C};
    parallel(threads, [&](int64_t t, int64_t of) {
        const Chunks chunks(share(s.M, t, of), chunk_rows(s));
        const int64_t space = chunks.size, panel = space * PANEL;
        const Operand<Unit> in(space, panels(s.C), LEFT), hidden(space, GROUP, LEFT);
        Scratch made(Unit::PAIRS ? panel * STEP : 0), result(space * s.n());
        for (int64_t m = chunks.begin; m < chunks.end; m += space) {
            const int64_t rows = least(space, chunks.end - m);
            pack_operand(from, m, rows, space, in);
            const Term up{in.left(0), in.panel, p1, words<Unit>(s.C)};
            for (int64_t group = 0; group < panels(s.K); group += GROUP) {
                const int64_t last = least(group + GROUP, panels(s.K));
                for (int64_t p = group; p < last; p += STEP) {
                    const int64_t end = least(p + STEP, last);
                    float* h = hidden.made(p - group, made);
                    product<Unit>(up, rows, p, end, s.k(), h - p * panel, panel, false);
                    for (int64_t o = p; o < end; o++, h += panel) {
                        activation(h, bias1 + o * PANEL, rows);
                        panel_to<Unit>(h, rows, hidden.left(o - group), nullptr);
                        clear_padding<Unit>(hidden.left(o - group), rows, s.K - o * PANEL);
                    }
                }
                const Term down{hidden.left(0), hidden.panel, p2 + words<Unit>(group * PANEL) * PANEL,
                                words<Unit>((last - group) * PANEL), words<Unit>(s.k()) * PANEL};
                product<Unit>(down, rows, 0, panels(s.N), s.N, result, panel, group > 0);
            }
            for (int64_t p = 0; p < panels(s.N); p++) add_bias(result + p * panel, rows, bias2 + p * PANEL);
            unpack_rows(result, space, m, rows, s.N, out);
        }
    });
}

// gw1, gw2: (K, C) and (N, K).
template <class T>
void mlp_backward(const Sizes& s, const T* grad, const T* x, const float* w1, const float* b1, const float* w2,
                  int64_t act, T* gx, float* gw1, float* gb1, float* gw2, float* gb2, int64_t threads) {
    using Unit = UnitOf<T>;
    constexpr int64_t GROUP = 4;
    threads = most(1, least(threads, s.M / ROW_MULTIPLE));
    const int64_t k = s.k(), size = k * (s.c() + s.n() + 1) + s.n();
    const int64_t up_size = k * words<Unit>(s.C), p2_size = k * words<Unit>(s.N), down_size = words<Unit>(k) * s.c();
    Scratch packed(up_size + p2_size + down_size + k), totals(threads * size);
    float *up = packed, *p2 = up + up_size, *down = p2 + p2_size, *bias = down + down_size;
    parallel(threads, [&](int64_t t, int64_t of) {
        pack_panels<Unit>(w1, s.C, 1, s.C, s.K, s.C, up, t, of);
        pack_panels<Unit>(w2, 1, s.K, s.N, s.K, s.N, p2, t, of);
        pack_panels<Unit>(w1, 1, s.C, k, s.C, s.K, down, t, of);
    });
    copy_padded(b1, s.K, k, bias);
    ActivateBackward activation = nullptr;
    with_activation(act, [&](auto a) { activation = activate_backward<decltype(a)>; });
    const Rows<T> from{x, nullptr, nullptr, nullptr, nullptr, s.C}, grads{grad, nullptr, nullptr, nullptr, nullptr, s.N};
    threads = parallel(threads, [&](int64_t t, int64_t of) {
        float *to1 = totals + t * size, *to2 = to1 + k * s.c(), *sums1 = to2 + k * s.n(), *sums2 = sums1 + k;
        for (int64_t i = 0; i < size; i++) to1[i] = 0;
        const Chunks chunks(share(s.M, t, of), chunk_rows(s));
        const int64_t space = chunks.size, panel = space * PANEL;
        const Operand<Unit> in(space, panels(s.C), BOTH), dy(space, panels(s.N), BOTH);
        const Operand<Unit> h(space, STEP, RIGHT), d(space, GROUP, BOTH);
        const int64_t aside = Unit::PAIRS ? panel * STEP : 0;  // products where they cannot stand among the operands
        Scratch dx(space * s.c()), made(2 * aside);
        for (int64_t m = chunks.begin; m < chunks.end; m += space) {
            const int64_t rows = least(space, chunks.end - m);
            pack_operand(from, m, rows, space, in);
            pack_operand(grads, m, rows, space, dy, sums2);
            const Term to_hidden{in.left(0), in.panel, up, words<Unit>(s.C)};
            const Term to_active{dy.left(0), dy.panel, p2, words<Unit>(s.N)};
            for (int64_t group = 0; group < panels(s.K); group += GROUP) {
                const int64_t last = least(group + GROUP, panels(s.K));
                for (int64_t p = group; p < last; p += STEP) {
                    const int64_t end = least(p + STEP, last);
                    float *dp = d.made(p - group, made), *hp = h.made(0, made + aside);
                    product<Unit>(to_hidden, rows, p, end, k, dp - p * panel, panel, false);
                    product<Unit>(to_active, rows, p, end, k, hp - p * panel, panel, false);
                    for (int64_t o = p; o < end; o++, dp += panel, hp += panel) {
                        float *d_right = d.right(o - group), *h_right = h.right(o - p);
                        activation(hp, dp, bias + o * PANEL, sums1 + o * PANEL, rows);
                        panel_to<Unit>(dp, rows, d.left(o - group), d_right);
                        clear_padding<Unit>(d.left(o - group), rows, s.K - o * PANEL);
                        panel_to<Unit>(hp, rows, nullptr, h_right);
                        const int64_t at = o * PANEL * PANEL, lines = words<Unit>(rows);
                        outers<Unit>(d_right, in.right(0), in.panel, lines, s.C, to1 + at, k * PANEL);
                        outers<Unit>(h_right, dy.right(0), dy.panel, lines, s.N, to2 + at, k * PANEL);
                    }
                }
                const Term back{d.left(0), d.panel, down + words<Unit>(group * PANEL) * PANEL,
                                words<Unit>((last - group) * PANEL), words<Unit>(k) * PANEL};
                product<Unit>(back, rows, 0, panels(s.C), s.C, dx, panel, group > 0);
            }
            unpack_rows(dx, space, m, rows, s.C, gx);
        }
    });
    add_threads(totals, size, threads);
    const float *from1 = totals, *from2 = from1 + k * s.c(), *sums1 = from2 + k * s.n(), *sums2 = sums1 + k;
    parallel(threads, [&](int64_t t, int64_t of) {
        const Range part = share(s.K, t, of);
        unpack(from1, k, part, s.C, gw1);
        unpack_transposed(from2, k, part, s.K, s.N, gw2);
        for (int64_t j = part.begin; j < part.end; j++) gb1[j] = sums1[j];
    });
    for (int64_t n = 0; n < s.N; n++) gb2[n] = sums2[n];
}
