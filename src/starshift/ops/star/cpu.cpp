// SPDX-License-Identifier: Apache-2.0
// wg star(w1 x + b1, w2 x + b2) + bg, and its gradients, without the two branches in memory.
//
// A thread takes its share of the rows (pixels) in chunks that stay in cache, and the hidden units of a chunk in groups:
// branches of a group, their star, and its part of the projection. Backward makes the branches again the same way.
// M rows, C channels in, K hidden units, N channels out. Everything inside is a panel matrix (panels.h).
#include "activation.h"
#include "calls.h"
#include "chunks.h"

namespace {

// How star places the activation; the order of starshift.ops.PLACEMENTS.
struct First {
    template <class A>
    static INLINE vf forward(vf x1, vf x2) {
        return A::forward(x1) * x2;
    }
    template <class A>
    static INLINE void backward(vf g, vf x1, vf x2, vf& h, vf& d1, vf& d2) {
        vf a = A::forward(x1);
        h = a * x2;
        d1 = A::backward(g * x2, x1);
        d2 = g * a;
    }
};
struct Both {
    template <class A>
    static INLINE vf forward(vf x1, vf x2) {
        return A::forward(x1) * A::forward(x2);
    }
    template <class A>
    static INLINE void backward(vf g, vf x1, vf x2, vf& h, vf& d1, vf& d2) {
        vf a1 = A::forward(x1), a2 = A::forward(x2);
        h = a1 * a2;
        d1 = A::backward(g * a2, x1);
        d2 = A::backward(g * a1, x2);
    }
};
struct Product {
    template <class A>
    static INLINE vf forward(vf x1, vf x2) {
        return A::forward(x1 * x2);
    }
    template <class A>
    static INLINE void backward(vf g, vf x1, vf x2, vf& h, vf& d1, vf& d2) {
        vf x = x1 * x2;
        h = A::forward(x);
        g = A::backward(g, x);
        d1 = g * x2;
        d2 = g * x1;
    }
};

// A panel of an operand as it is written; one side may be null.
struct To {
    float *left, *right;
};

// One panel of a chunk, element by element: star(x1 + b1, x2 + b2). Of floats it may be x1.
using Combine = void (*)(const float* x1, const float* x2, const float* b1, const float* b2, int64_t rows, To star);
template <class Unit, class Act, class Place>
void combine(const float* x1, const float* x2, const float* b1, const float* b2, int64_t rows, To star) {
    constexpr int64_t AT_ONCE = Unit::IN_WORD;
    for (int v = 0; v < PANEL; v += VL) {
        vf one = load(b1 + v), two = load(b2 + v);
        for (int64_t r = 0; r < rows; r += AT_ONCE) {
            vf stars[AT_ONCE] = {};
            for (int64_t j = 0; j < AT_ONCE; j++) {
                if (r + j == rows) break;
                const int64_t i = (r + j) * PANEL + v;
                stars[j] = Place::template forward<Act>(load(x1 + i) + one, load(x2 + i) + two);
            }
            Operand<Unit>::put(star.left, star.right, r, v, stars);
        }
    }
}

// The same with gradients. g: of the star; x1, x2: the branches without bias. Written: the star and the branches'
// gradients, whose column sums are added to sum1 and sum2. Of floats they may be what is read.
using CombineBackward = void (*)(const float* g, const float* x1, const float* x2, const float* b1, const float* b2,
                                 float* sum1, float* sum2, int64_t rows, To star, To d1, To d2);
template <class Unit, class Act, class Place>
void combine_backward(const float* g, const float* x1, const float* x2, const float* b1, const float* b2, float* sum1,
                      float* sum2, int64_t rows, To star, To d1, To d2) {
    constexpr int64_t AT_ONCE = Unit::IN_WORD;
    for (int v = 0; v < PANEL; v += VL) {
        vf one = load(b1 + v), two = load(b2 + v), total1 = {}, total2 = {};
        for (int64_t r = 0; r < rows; r += AT_ONCE) {
            vf stars[AT_ONCE] = {}, g1[AT_ONCE] = {}, g2[AT_ONCE] = {};
            for (int64_t j = 0; j < AT_ONCE; j++) {
                if (r + j == rows) break;
                const int64_t i = (r + j) * PANEL + v;
                Place::template backward<Act>(load(g + i), load(x1 + i) + one, load(x2 + i) + two, stars[j], g1[j], g2[j]);
                total1 += g1[j];
                total2 += g2[j];
            }
            Operand<Unit>::put(star.left, star.right, r, v, stars);
            Operand<Unit>::put(d1.left, d1.right, r, v, g1);
            Operand<Unit>::put(d2.left, d2.right, r, v, g2);
        }
        store(sum1 + v, load(sum1 + v) + total1);
        store(sum2 + v, load(sum2 + v) + total2);
    }
}

template <class F>
void with_placement(int64_t code, const F& f) {
    switch (code) {
        case 0: return f(First{});
        case 1: return f(Both{});
        case 2: return f(Product{});
    }
}

struct Passes {
    Combine forward;
    CombineBackward backward;
};
template <class Unit>
Passes passes(int64_t act, int64_t placement) {
    Passes found{};
    with_activation(act, [&](auto a) {
        with_placement(placement, [&](auto place) {
            using Act = decltype(a);
            using Place = decltype(place);
            found = {combine<Unit, Act, Place>, combine_backward<Unit, Act, Place>};
        });
    });
    return found;
}

template <class T>
void forward_rows(const Sizes& s, Combine combine, const Rows<T>& x, const float* w1, const float* w2, const float* wg,
                  const float* biases, Range range, T* out, double* sums, const float* center) {
    using Unit = UnitOf<T>;
    constexpr int64_t GROUP = 8;  // panels of hidden units at a time
    Chunks chunks(range, chunk_rows(s));
    int64_t space = chunks.size, panel = space * PANEL;
    const int64_t steps = (panels(s.K) + STEP - 1) / STEP;
    const Operand<Unit> in(space, panels(s.C), LEFT), hidden(space, GROUP, LEFT);
    Scratch branch1(Unit::PAIRS ? panel * STEP : 0), branch2(panel * STEP), result(space * s.n());
    for (int64_t m = chunks.begin; m < chunks.end; m += space) {
        int64_t rows = least(space, chunks.end - m), next = m + space, next_rows = least(space, chunks.end - next);
        pack_operand(x, m, rows, space, in);
        Term to_branch1{in.left(0), in.panel, w1, words<Unit>(s.C)}, to_branch2{in.left(0), in.panel, w2, words<Unit>(s.C)};
        for (int64_t group = 0; group < panels(s.K); group += GROUP) {
            int64_t last = least(group + GROUP, panels(s.K));
            for (int64_t p = group; p < last; p += STEP) {
                int64_t end = least(p + STEP, last);
                fetch_part(x.x, s.C, next, next_rows, p / STEP, steps);
                fetch_part(out, s.N, m, rows, p / STEP, steps);
                float* h = hidden.made(p - group, branch1);
                product<Unit>(to_branch1, rows, p, end, s.k(), h - p * panel, panel, false);
                product<Unit>(to_branch2, rows, p, end, s.k(), branch2 - p * panel, panel, false);
                for (int64_t o = p; o < end; o++, h += panel) {
                    combine(h, branch2 + (o - p) * panel, biases + o * PANEL, biases + s.k() + o * PANEL, rows,
                            {hidden.left(o - group), nullptr});
                    clear_padding<Unit>(hidden.left(o - group), rows, s.K - o * PANEL);
                }
            }
            Term projection{hidden.left(0), hidden.panel, wg + words<Unit>(group * PANEL) * PANEL,
                            words<Unit>((last - group) * PANEL), words<Unit>(s.k()) * PANEL};
            product<Unit>(projection, rows, 0, panels(s.N), s.N, result, panel, group > 0);
        }
        for (int64_t p = 0; p < panels(s.N); p++)
            add_bias(result + p * panel, rows, biases + 2 * s.k() + p * PANEL);
        unpack_rows(result, space, m, rows, s.N, out, sums, center);
    }
}

// Where one thread adds its gradients: panel matrices dw1[C][K], dw2[C][K] and dwg[N][K] as [panels][K][16], sums of
// branch gradients (k each), of the output gradient (n).
struct Sums {
    float *w1, *w2, *wg, *b1, *b2, *bg;
    static int64_t size(const Sizes& s) { return s.k() * (2 * s.c() + s.n() + 2) + s.n(); }
    Sums(const Sizes& s, float* at)
        : w1(at), w2(w1 + s.k() * s.c()), wg(w2 + s.k() * s.c()), b1(wg + s.k() * s.n()), b2(b1 + s.k()),
          bg(b2 + s.k()) {}
};

struct Weights {  // packed; first for branches and product gradient, then for the input gradient
    const float *w1_t, *w2_t, *wg, *w1, *w2;
};

template <class T>
void backward_rows(const Sizes& s, CombineBackward combine, const Rows<T>& grad, const Rows<T>& x, const Weights& w, const float* biases,
                   Range range, T* gx, double* sums, const float* center, const T* partner, const Sums& to) {
    using Unit = UnitOf<T>;
    constexpr int64_t GROUP = 4;
    Chunks chunks(range, chunk_rows(s));
    int64_t space = chunks.size, panel = space * PANEL;
    const int64_t steps = (panels(s.K) + STEP - 1) / STEP;
    const Operand<Unit> in(space, panels(s.C), BOTH), dy(space, panels(s.N), BOTH);
    const Operand<Unit> star(space, STEP, RIGHT), d1(space, GROUP, BOTH), d2(space, GROUP, BOTH);
    const int64_t aside = Unit::PAIRS ? panel * STEP : 0;  // products where they cannot stand among the operands
    Scratch dx(space * s.c()), made(3 * aside);
    for (int64_t m = chunks.begin; m < chunks.end; m += space) {
        int64_t rows = least(space, chunks.end - m), next = m + space, next_rows = least(space, chunks.end - next);
        pack_operand(x, m, rows, space, in);
        pack_operand(grad, m, rows, space, dy, to.bg);
        const int64_t c = words<Unit>(s.C), n = words<Unit>(s.N), lines = words<Unit>(rows);
        Term to_branch1{in.left(0), in.panel, w.w1_t, c}, to_branch2{in.left(0), in.panel, w.w2_t, c};
        Term to_product{dy.left(0), dy.panel, w.wg, n};
        for (int64_t group = 0; group < panels(s.K); group += GROUP) {
            int64_t last = least(group + GROUP, panels(s.K));
            for (int64_t p = group; p < last; p += STEP) {
                int64_t end = least(p + STEP, last);
                fetch_part(x.x, s.C, next, next_rows, p / STEP, steps);
                fetch_part(grad.x, s.N, next, next_rows, p / STEP, steps);
                fetch_part(grad.other, s.N, next, next_rows, p / STEP, steps);
                fetch_part((const T*)gx, s.C, m, rows, p / STEP, steps);
                float* hp = star.made(0, made);
                float* d1p = d1.made(p - group, made + aside);
                float* d2p = d2.made(p - group, made + 2 * aside);
                product<Unit>(to_branch1, rows, p, end, s.k(), d1p - p * panel, panel, false);
                product<Unit>(to_branch2, rows, p, end, s.k(), d2p - p * panel, panel, false);
                product<Unit>(to_product, rows, p, end, s.k(), hp - p * panel, panel, false);
                for (int64_t o = p; o < end; o++, hp += panel, d1p += panel, d2p += panel) {
                    const int64_t j = o * PANEL, g = o - group;
                    float *h = star.right(o - p), *d1r = d1.right(g), *d2r = d2.right(g);
                    combine(hp, d1p, d2p, biases + j, biases + s.k() + j, to.b1 + j, to.b2 + j, rows,
                            {star.left(o - p), h}, {d1.left(g), d1r}, {d2.left(g), d2r});
                    clear_padding<Unit>(d1.left(g), rows, s.K - j);
                    clear_padding<Unit>(d2.left(g), rows, s.K - j);
                    const int64_t at = j * PANEL, apart = s.k() * PANEL;
                    outers<Unit>(d1r, in.right(0), in.panel, lines, s.C, to.w1 + at, apart);
                    outers<Unit>(d2r, in.right(0), in.panel, lines, s.C, to.w2 + at, apart);
                    outers<Unit>(h, dy.right(0), dy.panel, lines, s.N, to.wg + at, apart);
                }
            }
            const int64_t k = words<Unit>((last - group) * PANEL), from = words<Unit>(group * PANEL) * PANEL;
            const int64_t stride = words<Unit>(s.k()) * PANEL;
            Term back[2] = {{d1.left(0), d1.panel, w.w1 + from, k, stride}, {d2.left(0), d2.panel, w.w2 + from, k, stride}};
            product<Unit>(back, rows, 0, panels(s.C), s.C, dx, panel, group > 0);
        }
        unpack_rows(dx, space, m, rows, s.C, gx, sums, center, partner);
    }
}

// The weights of forward, packed: panels of w1, w2 and wg, and the three biases.
template <class Unit, class F>
struct Packed {
    F *w1, *w2, *wg, *biases;
    static int64_t size(const Sizes& s) { return 2 * s.k() * words<Unit>(s.C) + words<Unit>(s.k()) * s.n() + 2 * s.k() + s.n(); }
    Packed(const Sizes& s, F* at)
        : w1(at), w2(w1 + s.k() * words<Unit>(s.C)), wg(w2 + s.k() * words<Unit>(s.C)),
          biases(wg + words<Unit>(s.k()) * s.n()) {}
};

template <class Unit>
void pack_forward(const Sizes& s, const float* w1, const float* b1, const float* w2, const float* b2, const float* wg,
                  const float* bg, float* to, int64_t threads) {
    const Packed<Unit, float> at(s, to);
    parallel(threads, [&](int64_t t, int64_t of) {
        pack_panels<Unit>(w1, s.C, 1, s.C, s.K, s.C, at.w1, t, of);
        pack_panels<Unit>(w2, s.C, 1, s.C, s.K, s.C, at.w2, t, of);
        pack_panels<Unit>(wg, s.K, 1, s.k(), s.N, s.K, at.wg, t, of);
    });
    copy_padded(b1, s.K, s.k(), at.biases);
    copy_padded(b2, s.K, s.k(), at.biases + s.k());
    copy_padded(bg, s.N, s.n(), at.biases + 2 * s.k());
}

template <class T>
void forward(const Sizes& s, const Rows<T>& x, const float* packed, int64_t act, int64_t placement, T* out,
             const float* center, double* sums, int64_t threads) {
    threads = most(1, least(threads, s.M / ROW_MULTIPLE));
    const Packed<UnitOf<T>, const float> w(s, packed);
    Scratch partial(sums ? threads * 4 * s.N : 0);
    double* parts = sums ? reinterpret_cast<double*>((float*)partial) : nullptr;
    for (int64_t i = 0; parts && i < threads * 2 * s.N; i++) parts[i] = 0;
    Combine combine = passes<UnitOf<T>>(act, placement).forward;
    threads = parallel(threads, [&](int64_t t, int64_t of) {
        forward_rows<T>(s, combine, x, w.w1, w.w2, w.wg, w.biases, share(s.M, t, of), out, parts ? parts + t * 2 * s.N : nullptr,
                        center);
    });
    if (sums) add_up(parts, threads, 2 * s.N, sums);
}

template <class T>
void backward(const Sizes& s, const Rows<T>& grad, const Rows<T>& x, const float* w1, const float* b1, const float* w2,
              const float* b2, const float* wg, int64_t act, int64_t placement, T* gx, float* gw1, float* gb1,
              float* gw2, float* gb2, float* gwg, float* gbg, const T* partner, const float* center, double* sums,
              int64_t threads) {
    threads = most(1, least(threads, s.M / ROW_MULTIPLE));
    using Unit = UnitOf<T>;
    const int64_t k = s.k(), size = Sums::size(s), up = k * words<Unit>(s.C), at_n = k * words<Unit>(s.N);
    const int64_t down = words<Unit>(k) * s.c();
    Scratch packed(2 * up + at_n + 2 * down + 2 * k), totals(threads * size);
    Scratch partial(sums ? threads * 4 * s.C : 0);
    float *p1t = packed, *p2t = p1t + up, *pg = p2t + up, *p1 = pg + at_n, *p2 = p1 + down, *biases = p2 + down;
    parallel(threads, [&](int64_t t, int64_t of) {
        pack_panels<Unit>(w1, s.C, 1, s.C, s.K, s.C, p1t, t, of);
        pack_panels<Unit>(w2, s.C, 1, s.C, s.K, s.C, p2t, t, of);
        pack_panels<Unit>(wg, 1, s.K, s.N, s.K, s.N, pg, t, of);
        pack_panels<Unit>(w1, 1, s.C, k, s.C, s.K, p1, t, of);
        pack_panels<Unit>(w2, 1, s.C, k, s.C, s.K, p2, t, of);
    });
    copy_padded(b1, s.K, k, biases);
    copy_padded(b2, s.K, k, biases + k);
    double* parts = sums ? reinterpret_cast<double*>((float*)partial) : nullptr;
    for (int64_t i = 0; parts && i < threads * 2 * s.C; i++) parts[i] = 0;
    Weights weights{p1t, p2t, pg, p1, p2};
    CombineBackward combine = passes<UnitOf<T>>(act, placement).backward;
    threads = parallel(threads, [&](int64_t t, int64_t of) {
        float* mine = totals + t * size;
        for (int64_t i = 0; i < size; i++) mine[i] = 0;
        backward_rows<T>(s, combine, grad, x, weights, biases, share(s.M, t, of), gx,
                         parts ? parts + t * 2 * s.C : nullptr, center, partner, Sums(s, mine));
    });
    add_threads(totals, size, threads);
    const Sums total(s, totals);
    parallel(threads, [&](int64_t t, int64_t of) {
        const Range part = share(s.K, t, of);
        unpack(total.w1, k, part, s.C, gw1);
        unpack(total.w2, k, part, s.C, gw2);
        unpack_transposed(total.wg, k, part, s.K, s.N, gwg);
        for (int64_t j = part.begin; j < part.end; j++) gb1[j] = total.b1[j], gb2[j] = total.b2[j];
    });
    for (int64_t n = 0; n < s.N; n++) gbg[n] = total.bg[n];
    if (sums) add_up(parts, threads, 2 * s.C, sums);
}

template <class T>
Rows<T> rows(const void* x, const void* other, const float* scale, const float* other_scale, const float* shift,
             int64_t columns) {
    return {static_cast<const T*>(x), static_cast<const T*>(other), scale, other_scale, shift, columns};
}

}  // namespace

#define ROWS(T, name, columns) rows<T>(name, name##_other, name##_scale, name##_other_scale, name##_shift, columns)

API int64_t starshift_star_mlp_packed_floats(int64_t dtype, int64_t C, int64_t K, int64_t N) {
    const Sizes s{0, C, K, N};
    return dtype == 0 ? Packed<Floats, float>::size(s) : Packed<UnitOf<bf16>, float>::size(s);
}

API void starshift_star_mlp_pack_for(int64_t dtype, int64_t C, int64_t K, int64_t N, const float* w1, const float* b1,
                                 const float* w2, const float* b2, const float* wg, const float* bg, float* packed,
                                 int64_t threads) {
    const Sizes s{0, C, K, N};
    (dtype == 0 ? pack_forward<Floats> : pack_forward<UnitOf<bf16>>)(s, w1, b1, w2, b2, wg, bg, packed, threads);
}

API void starshift_star_mlp_forward(int64_t dtype, int64_t M, int64_t C, int64_t K, int64_t N, SOURCE(x),
                                    const float* packed, int64_t act, int64_t placement, void* out,
                                    const float* center, double* sums, int64_t threads) {
    Sizes s{M, C, K, N};
    if (dtype == 0)
        forward<float>(s, ROWS(float, x, C), packed, act, placement, (float*)out, center, sums, threads);
    else
        forward<bf16>(s, ROWS(bf16, x, C), packed, act, placement, (bf16*)out, center, sums, threads);
}

API void starshift_star_mlp_backward(int64_t dtype, int64_t M, int64_t C, int64_t K, int64_t N, SOURCE(grad),
                                     SOURCE(x), const float* w1, const float* b1, const float* w2, const float* b2,
                                     const float* wg, int64_t act, int64_t placement, void* gx, float* gw1, float* gb1,
                                     float* gw2, float* gb2, float* gwg, float* gbg, const void* partner,
                                     const float* center, double* sums, int64_t threads) {
    Sizes s{M, C, K, N};
    if (dtype == 0)
        backward<float>(s, ROWS(float, grad, N), ROWS(float, x, C), w1, b1, w2, b2, wg, act, placement, (float*)gx,
                        gw1, gb1, gw2, gb2, gwg, gbg, (const float*)partner, center, sums, threads);
    else
        backward<bf16>(s, ROWS(bf16, grad, N), ROWS(bf16, x, C), w1, b1, w2, b2, wg, act, placement, (bf16*)gx, gw1,
                       gb1, gw2, gb2, gwg, gbg, (const bf16*)partner, center, sums, threads);
}
