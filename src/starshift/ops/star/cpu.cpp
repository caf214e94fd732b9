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

// One panel of a chunk, element by element: h = star(h + b1, x2 + b2).
using Combine = void (*)(float* h, const float* x2, const float* b1, const float* b2, int64_t rows);
template <class Act, class Place>
void combine(float* h, const float* x2, const float* b1, const float* b2, int64_t rows) {
    for (int v = 0; v < PANEL; v += VL) {
        vf one = load(b1 + v), two = load(b2 + v);
        for (int64_t i = v; i < rows * PANEL; i += PANEL)
            store(h + i, Place::template forward<Act>(load(h + i) + one, load(x2 + i) + two));
    }
}

// The same with gradients. In: h, the gradient of the star; d1, d2, the branches without bias. Out: h, the star; d1, d2,
// the branches' gradients, whose column sums are added to sum1 and sum2.
using CombineBackward = void (*)(float* h, float* d1, float* d2, const float* b1, const float* b2, float* sum1,
                                 float* sum2, int64_t rows);
template <class Act, class Place>
void combine_backward(float* h, float* d1, float* d2, const float* b1, const float* b2, float* sum1, float* sum2,
                      int64_t rows) {
    for (int v = 0; v < PANEL; v += VL) {
        vf one = load(b1 + v), two = load(b2 + v), total1 = {}, total2 = {};
        for (int64_t i = v; i < rows * PANEL; i += PANEL) {
            vf star, g1, g2;
            Place::template backward<Act>(load(h + i), load(d1 + i) + one, load(d2 + i) + two, star, g1, g2);
            store(h + i, star);
            store(d1 + i, g1);
            store(d2 + i, g2);
            total1 += g1;
            total2 += g2;
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
Passes passes(int64_t act, int64_t placement) {
    Passes found{};
    with_activation(act, [&](auto a) {
        with_placement(placement, [&](auto place) {
            using Act = decltype(a);
            using Place = decltype(place);
            found = {combine<Act, Place>, combine_backward<Act, Place>};
        });
    });
    return found;
}

template <class T>
void forward_rows(const Sizes& s, Combine combine, const Rows<T>& x, const float* w1, const float* w2, const float* wg,
                  const float* biases, Range range, T* out, double* sums, const float* center) {
    constexpr int64_t GROUP = 8;  // panels of hidden units at a time
    Chunks chunks(range, chunk_rows(s));
    int64_t space = chunks.size, panel = space * PANEL;
    const int64_t steps = (panels(s.K) + STEP - 1) / STEP;
    Scratch in(space * s.c()), hidden(panel * GROUP), branch(panel * STEP), result(space * s.n());
    for (int64_t m = chunks.begin; m < chunks.end; m += space) {
        int64_t rows = least(space, chunks.end - m), next = m + space, next_rows = least(space, chunks.end - next);
        pack_rows(x, m, rows, space, in);
        Term to_branch1{in, panel, w1, s.C}, to_branch2{in, panel, w2, s.C};
        for (int64_t group = 0; group < panels(s.K); group += GROUP) {
            int64_t last = least(group + GROUP, panels(s.K));
            for (int64_t p = group; p < last; p += STEP) {
                int64_t end = least(p + STEP, last);
                fetch_part(x.x, s.C, next, next_rows, p / STEP, steps);
                fetch_part(out, s.N, m, rows, p / STEP, steps);
                float* h = hidden + (p - group) * panel;
                product(&to_branch1, 1, rows, p, end, s.k(), h - p * panel, panel, false);
                product(&to_branch2, 1, rows, p, end, s.k(), branch - p * panel, panel, false);
                for (int64_t o = p; o < end; o++)
                    combine(hidden + (o - group) * panel, branch + (o - p) * panel, biases + o * PANEL,
                            biases + s.k() + o * PANEL, rows);
            }
            Term projection{hidden, panel, wg + group * PANEL * PANEL, (last - group) * PANEL, s.k() * PANEL};
            product(&projection, 1, rows, 0, panels(s.N), s.N, result, panel, group > 0);
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
    constexpr int64_t GROUP = 4;
    Chunks chunks(range, chunk_rows(s));
    int64_t space = chunks.size, panel = space * PANEL;
    const int64_t steps = (panels(s.K) + STEP - 1) / STEP;
    Scratch in(space * s.c()), dy(space * s.n()), dx(space * s.c());
    Scratch h(panel * GROUP), d1(panel * GROUP), d2(panel * GROUP);
    for (int64_t m = chunks.begin; m < chunks.end; m += space) {
        int64_t rows = least(space, chunks.end - m), next = m + space, next_rows = least(space, chunks.end - next);
        pack_rows(x, m, rows, space, in);
        pack_rows(grad, m, rows, space, dy, to.bg);
        Term to_branch1{in, panel, w.w1_t, s.C}, to_branch2{in, panel, w.w2_t, s.C}, to_product{dy, panel, w.wg, s.N};
        for (int64_t group = 0; group < panels(s.K); group += GROUP) {
            int64_t last = least(group + GROUP, panels(s.K));
            for (int64_t p = group; p < last; p += STEP) {
                int64_t end = least(p + STEP, last);
                fetch_part(x.x, s.C, next, next_rows, p / STEP, steps);
                fetch_part(grad.x, s.N, next, next_rows, p / STEP, steps);
                fetch_part(grad.other, s.N, next, next_rows, p / STEP, steps);
                fetch_part((const T*)gx, s.C, m, rows, p / STEP, steps);
                float *hp = h + (p - group) * panel, *d1p = d1 + (p - group) * panel, *d2p = d2 + (p - group) * panel;
                product(&to_branch1, 1, rows, p, end, s.k(), d1p - p * panel, panel, false);
                product(&to_branch2, 1, rows, p, end, s.k(), d2p - p * panel, panel, false);
                product(&to_product, 1, rows, p, end, s.k(), hp - p * panel, panel, false);
                for (int64_t o = p; o < end; o++, hp += panel, d1p += panel, d2p += panel) {
                    int64_t j = o * PANEL;
                    combine(hp, d1p, d2p, biases + j, biases + s.k() + j, to.b1 + j, to.b2 + j, rows);
                    for (int64_t q = 0; q < panels(s.C); q++) {
                        int64_t left = least(PANEL, s.C - q * PANEL), at = (q * s.k() + o * PANEL) * PANEL;
                        outer(d1p, in + q * panel, rows, left, to.w1 + at);
                        outer(d2p, in + q * panel, rows, left, to.w2 + at);
                    }
                    for (int64_t q = 0; q < panels(s.N); q++)
                        outer(hp, dy + q * panel, rows, least(PANEL, s.N - q * PANEL),
                              to.wg + (q * s.k() + o * PANEL) * PANEL);
                }
            }
            int64_t k = (last - group) * PANEL, from = group * PANEL * PANEL, stride = s.k() * PANEL;
            Term back[2] = {{d1, panel, w.w1 + from, k, stride}, {d2, panel, w.w2 + from, k, stride}};
            product(back, 2, rows, 0, panels(s.C), s.C, dx, panel, group > 0);
        }
        unpack_rows(dx, space, m, rows, s.C, gx, sums, center, partner);
    }
}

// The weights of forward, packed: panels of w1, w2 and wg, and the three biases.
template <class F>
struct Packed {
    F *w1, *w2, *wg, *biases;
    static int64_t size(const Sizes& s) { return s.k() * (2 * s.C + s.n() + 2) + s.n(); }
    Packed(const Sizes& s, F* at)
        : w1(at), w2(w1 + s.k() * s.C), wg(w2 + s.k() * s.C), biases(wg + s.k() * s.n()) {}
};

void pack_forward(const Sizes& s, const float* w1, const float* b1, const float* w2, const float* b2, const float* wg,
                  const float* bg, float* to, int64_t threads) {
    const Packed<float> at(s, to);
    parallel(threads, [&](int64_t t, int64_t of) {
        pack_panels(w1, s.C, 1, s.C, s.K, s.C, at.w1, t, of);
        pack_panels(w2, s.C, 1, s.C, s.K, s.C, at.w2, t, of);
        pack_panels(wg, s.K, 1, s.k(), s.N, s.K, at.wg, t, of);
    });
    copy_padded(b1, s.K, s.k(), at.biases);
    copy_padded(b2, s.K, s.k(), at.biases + s.k());
    copy_padded(bg, s.N, s.n(), at.biases + 2 * s.k());
}

template <class T>
void forward(const Sizes& s, const Rows<T>& x, const float* packed, int64_t act, int64_t placement, T* out,
             const float* center, double* sums, int64_t threads) {
    threads = most(1, least(threads, s.M / ROW_MULTIPLE));
    const Packed<const float> w(s, packed);
    Scratch partial(sums ? threads * 4 * s.N : 0);
    double* parts = sums ? reinterpret_cast<double*>((float*)partial) : nullptr;
    for (int64_t i = 0; parts && i < threads * 2 * s.N; i++) parts[i] = 0;
    Combine combine = passes(act, placement).forward;
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
    int64_t k = s.k(), size = Sums::size(s);
    Scratch packed(2 * k * s.C + k * s.N + 2 * k * s.c() + 2 * k), totals(threads * size);
    Scratch partial(sums ? threads * 4 * s.C : 0);
    float *p1t = packed, *p2t = p1t + k * s.C, *pg = p2t + k * s.C, *p1 = pg + k * s.N, *p2 = p1 + k * s.c();
    float* biases = p2 + k * s.c();
    parallel(threads, [&](int64_t t, int64_t of) {
        pack_panels(w1, s.C, 1, s.C, s.K, s.C, p1t, t, of);
        pack_panels(w2, s.C, 1, s.C, s.K, s.C, p2t, t, of);
        pack_panels(wg, 1, s.K, s.N, s.K, s.N, pg, t, of);
        pack_panels(w1, 1, s.C, k, s.C, s.K, p1, t, of);
        pack_panels(w2, 1, s.C, k, s.C, s.K, p2, t, of);
    });
    copy_padded(b1, s.K, k, biases);
    copy_padded(b2, s.K, k, biases + k);
    double* parts = sums ? reinterpret_cast<double*>((float*)partial) : nullptr;
    for (int64_t i = 0; parts && i < threads * 2 * s.C; i++) parts[i] = 0;
    Weights weights{p1t, p2t, pg, p1, p2};
    CombineBackward combine = passes(act, placement).backward;
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

// How many floats starshift_star_mlp_pack writes.
API int64_t starshift_star_mlp_packed(int64_t C, int64_t K, int64_t N) { return Packed<float>::size({0, C, K, N}); }

API void starshift_star_mlp_pack(int64_t C, int64_t K, int64_t N, const float* w1, const float* b1, const float* w2,
                                 const float* b2, const float* wg, const float* bg, float* packed, int64_t threads) {
    pack_forward({0, C, K, N}, w1, b1, w2, b2, wg, bg, packed, threads);
}

// packed: by starshift_star_mlp_pack.
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
