// SPDX-License-Identifier: Apache-2.0
// 1x1 convolution, batch norm, ReLU, shift, 1x1 convolution, and its gradients, without the wide tensor in memory.
//
// x (N C H W), u = w1 x with E channels, h = scale (u - mean) + bias, r = relu(h), z = w2 shift(r) with K channels. The
// batch's statistics of u follow from the mean and the covariance of x, and so do the two sums that the gradient of a
// batch norm needs: README.md has the algebra. h is made anew for a band of rows at a time, wherever it is needed.
#include "../pointwise_norm/narrow.h"
#include "../shift/conv.h"
#include "folded.h"
#include "padded.h"

namespace {

constexpr int64_t CACHED = 640 * 1024;  // bytes of the wide tensors of a band

struct Module {
    int64_t N, C, H, W, E, K, stride;
    const float *w1, *w2, *gamma, *beta;
    const int64_t* offsets;
    int64_t runs;
    float eps;

    int64_t Ho() const { return (H + stride - 1) / stride; }
    int64_t Wo() const { return (W + stride - 1) / stride; }
    int64_t c() const { return panels(C) * PANEL; }
    int64_t e() const { return panels(E) * PANEL; }
    Linear linear() const { return {N * H * W, C, E, w1, gamma, beta, eps}; }
    int64_t at_once() const { return E > 512 ? 72 : 144; }  // pixels
    // Lines of a panel that holds whole rows of so many pixels, and what a product of the last of them writes.
    int64_t space(int64_t width) const { return round_up(most(1, at_once() / width) * width + ROW_MULTIPLE, ROW_MULTIPLE); }
    Shape first() const { return {N, E, H, W, C, 1}; }      // of the gradients (E, C) and (E, K), see conv.h
    Shape second() const { return {N, E, H, W, K, stride}; }
};

// What all bands share: the first convolution with the norm, and the displacements.
template <class Unit>
struct Wide : Scaled {
    Wide(const Module& m, const float* x_mean, const float* var)
        : Scaled(m.linear(), x_mean, var), table(m.offsets, m.runs, m.E, 1, false),
          back(m.offsets, m.runs, m.E, -1, false), up(m.linear(), *this, x_mean) {}
    Table<vi> table, back;
    Up<Unit> up;
};

// Bands of an image: rows of z, and the rows of x under them.
struct Bands {
    int64_t rows, count;
    Bands(const Module& m, const Table<vi>& table, int64_t bytes) {  // that a number takes
        const int64_t line = 2 * bytes * m.e() * (m.W + 2 * table.reach_x);
        const int64_t fit = (CACHED / line - 2 * table.reach) / m.stride;
        count = (m.Ho() + most(fit, 4) - 1) / most(fit, 4);
        rows = (m.Ho() + count - 1) / count;
    }
    Range out(const Module& m, int64_t band) const {
        return {least(band * rows, m.Ho()), least((band + 1) * rows, m.Ho())};
    }
    static Range in(const Module& m, Range out) { return {out.begin * m.stride, least(out.end * m.stride, m.H)}; }
};

INLINE Range widened(Range rows, int64_t by, int64_t H) { return {most(rows.begin - by, 0), least(rows.end + by, H)}; }

// In steps of whole rows, about `pixels` pixels each: f(first, last).
template <class F>
INLINE void in_steps(Range rows, int64_t width, int64_t pixels, const F& f) {
    const int64_t step = most(1, pixels / width);
    for (int64_t y = rows.begin; y < rows.end; y += step) f(y, least(y + step, rows.end));
}

template <class Unit>
using PaddedOf = Padded<typename Unit::Stored>;

// Panels first .. last of a row of `to`: the row-th W pixels of a matrix times another.
template <class Unit, class Edge>
INLINE void row_product(Term term, int64_t row, int64_t W, const PaddedOf<Unit>& to, int64_t first, int64_t last, int64_t y,
                        Edge edge) {
    term.a += row * W * PANEL / Unit::IN_WORD;
    product<Unit>(term, W, first, last, last * PANEL, to.at(0, y, 0), to.panel, edge);
}

// r for a band of image n and the rows beside it that the shift reaches. Returns those that there are.
template <class Unit, class T>
Range activate(const Module& m, const Wide<Unit>& wide, const T* x, int64_t n, Range band, const PaddedOf<Unit>& r,
               const Operand<Unit>& in) {
    const int64_t origin = band.begin, reach = wide.table.reach;
    const Range rows = widened(band, reach, m.H);
    for (int64_t y = origin - reach; y < rows.begin; y++) r.clear_row(y - origin);
    for (int64_t y = rows.end; y < band.end + reach; y++) r.clear_row(y - origin);
    const int64_t space = m.space(m.W);
    const Rows<T> pixels = wide.up.pixels(m.linear(), x);
    in_steps(rows, m.W, m.at_once(), [&](int64_t first, int64_t last) {
        pack_operand(pixels, (n * m.H + first) * m.W, (last - first) * m.W, space, in);
        const Term term{in.left(0), in.panel, wide.up.weights, words<Unit>(m.C)};
        for (int64_t p = 0; p < panels(m.E); p += STEP)
            for (int64_t y = first; y < last; y++) {
                const int64_t end = least(p + STEP, panels(m.E));
                row_product<Unit>(term, y - first, m.W, r, p, end, y - origin, wide.up.relu_edge());
                for (int64_t o = p; o < end; o++) r.trim(o, y - origin);
            }
    });
    return rows;
}

// Panel p of what the second convolution reads for rows first .. last of z, as left operand and, where it is not null, as
// right one. Of floats both are one.
template <class Unit>
void displaced_panel(const Module& m, const Table<vi>& table, const PaddedOf<Unit>& r, int64_t p, int64_t first,
                     int64_t last, int64_t origin, float* left, float* right) {
    using T = typename Unit::Stored;
    const int64_t Wo = m.Wo(), step = m.stride * PANEL;
    for (int64_t y = first; y < last; y++) {
        T* to = reinterpret_cast<T*>(left) + (y - first) * Wo * PANEL;
        const T* from = r.at(p, y * m.stride - origin, 0);
        if constexpr (Unit::PAIRS) {  // of an odd row the last two are one too many: the next row overwrites it
            if (m.stride == 1)
                gather_padded<2>(table[p], from, r.line, 2 * step, words<Unit>(Wo),
                                 [&](int64_t i, auto value) { memcpy(to + 2 * i * PANEL, &value, sizeof value); });
            else
                gather_padded<1>(table[p], from, r.line, step, Wo,
                                 [&](int64_t i, auto value) { memcpy(to + i * PANEL, &value, sizeof value); });
        } else {
            for (int64_t v = 0; v < PANEL; v += VL) {
                const int64_t group = (p * PANEL + v) / VL;
                if (group < table.count)
                    gather_padded<1>(table[group], from + v, r.line, step, Wo,
                                     [&](int64_t i, vi value) { store(to + i * PANEL + v, (vf)value); });
                else
                    for (int64_t i = 0; i < Wo; i++) store(to + i * PANEL + v, (vf){});
            }
        }
    }
    if (right) lines_to_right<Unit>(left, (last - first) * Wo, right);
}

template <class T>
void forward(Module m, const T* x, float* mean, float* var, float* x_mean, float* covariance, T* z,
             int64_t threads) {
    using Unit = UnitOf<T>;
    const Multiplied<Unit> w1(m.w1, m.E * m.C);
    m.w1 = w1;
    moments(m.linear(), x, x_mean, covariance, threads);
    statistics(m.linear(), x_mean, covariance, mean, var, threads);
    const Wide<Unit> wide(m, x_mean, var);
    const Bands bands(m, wide.table, sizeof(typename Unit::Stored));
    const int64_t k = panels(m.K) * PANEL, reach = wide.table.reach, Wo = m.Wo();
    Scratch packed(words<Unit>(m.E) * k);
    pack_panels<Unit>(m.w2, m.E, 1, m.E, m.K, m.E, packed, 0, 1);
    parallel(threads, [&](int64_t thread, int64_t of) {
        const Range mine = share(m.N * bands.count, thread, of);
        const int64_t space_in = m.space(m.W), space = m.space(Wo), panel = space * PANEL;
        const PaddedOf<Unit> r(m.E, bands.rows * m.stride, m.W, reach, wide.table.reach_x);
        const Operand<Unit> in(space_in, panels(m.C), LEFT), gathered(space, panels(m.E), LEFT);
        Scratch result(space * k);
        for (int64_t unit = mine.begin; unit < mine.end; unit++) {
            const int64_t n = unit / bands.count;
            const Range out = bands.out(m, unit % bands.count), rows = Bands::in(m, out);
            activate(m, wide, x, n, rows, r, in);
            in_steps(out, Wo, m.at_once(), [&](int64_t first, int64_t last) {
                for (int64_t p = 0; p < panels(m.E); p++)
                    displaced_panel<Unit>(m, wide.table, r, p, first, last, rows.begin, gathered.left(p), nullptr);
                const Term term{gathered.left(0), gathered.panel, packed, words<Unit>(m.E)};
                product<Unit>(term, (last - first) * Wo, 0, panels(m.K), m.K, result, panel, false);
                unpack_rows(result, space, (n * m.Ho() + first) * Wo, (last - first) * Wo, m.K, z);
            });
        }
    });
}

// What the threads gather in backward: sums over pixels of g (x - mean)', (E, C); of r' grad, (E, K); and of g, (E).
struct Sums {
    Sums(const Module& m, int64_t threads)
        : size1(gradient_size(m.first())), size2(gradient_size(m.second())), w1(threads * size1), w2(threads * size2),
          g(2 * threads * m.e()) {
        clear(w1, threads * size1);
        clear(w2, threads * size2);
        clear(g, 2 * threads * m.e());
    }
    double* of_g() const { return reinterpret_cast<double*>((float*)g); }
    int64_t size1, size2;
    Scratch w1, w2, g;
};

// Panel p of g, the gradient of h, for rows first .. last of a band, as left and right operand; its sums are added.
template <class Unit>
void at_hidden(const Module& m, const Table<vi>& back, const PaddedOf<Unit>& r, const PaddedOf<Unit>& dh, int64_t p,
               int64_t first, int64_t last, int64_t origin, float* left, float* right, double* sums) {
    using T = typename Unit::Stored;
    auto each_row = [&](int64_t v, auto take) __attribute__((always_inline)) {  // take(from, mask, to), of vector v
        T* to = reinterpret_cast<T*>(left) + v;
        for (int64_t y = first; y < last; y++, to += m.W * PANEL)
            take(dh.at(p, y - origin, 0) + v, r.at(p, y - origin, 0) + v, to);
    };
    auto add = [&](int64_t v, vf total) {
        for (int i = 0; i < VL; i++) sums[p * PANEL + v + i] += total[i];
    };
    if constexpr (Unit::PAIRS) {
        each_row(0, [&](const T* from, const T* on, T* to) __attribute__((always_inline)) {  // beside the row r is zero
            gather_padded<2>(back[p], from, dh.line, 2 * PANEL, words<Unit>(m.W), [&](int64_t i, auto value) {
                value &= (load_lanes<decltype(value)>(on + 2 * i * PANEL) & 0x7fff) != 0;
                memcpy(to + 2 * i * PANEL, &value, sizeof value);
            });
        });
        add(0, lines_to_right<Unit>(left, (last - first) * m.W, right));
    } else {
        for (int64_t v = 0; v < PANEL; v += VL) {
            const int64_t group = (p * PANEL + v) / VL;
            vf total = {};
            each_row(v, [&](const T* from, const T* on, T* to) __attribute__((always_inline)) {
                if (group >= back.count) {
                    for (int64_t i = 0; i < m.W; i++) store(to + i * PANEL, (vf){});
                    return;
                }
                gather_padded<1>(back[group], from, dh.line, PANEL, m.W, [&](int64_t i, vi value) {
                    const vf g = select(load(on + i * PANEL) <= 0.0f, (vf){}, (vf)value);
                    store(to + i * PANEL, g);
                    total += g;
                });
            });
            add(v, total);
        }
    }
}

// Panels p .. end of rows first .. last of z to where they stand among the rows of x.
template <class T>
void spread(const Module& m, const float* from, int64_t panel, int64_t p, int64_t end, int64_t first, int64_t last,
            int64_t origin, const Padded<T>& to) {
    for (int64_t o = p; o < end; o++, from += panel)
        for (int64_t y = first; y < last; y++)
            for (int64_t i = 0; i < m.Wo(); i++)
                for (int v = 0; v < PANEL; v += VL)
                    store(to.at(o, y * m.stride - origin, i * m.stride) + v,
                          load(from + ((y - first) * m.Wo() + i) * PANEL + v));
}

// All but what the norm's sums contribute to the gradient of x.
template <class T, class Unit>
void backward_bands(const Module& m, const Wide<Unit>& wide, const T* grad, const T* x, T* gx, const Sums& sums,
                    int64_t threads) {
    const Bands bands(m, wide.table, sizeof(typename Unit::Stored));
    const int64_t reach = wide.table.reach, Wo = m.Wo(), c = m.c(), k = panels(m.K) * PANEL;
    Scratch down(words<Unit>(m.E) * c), packed(words<Unit>(m.K) * m.e());
    pack_panels<Unit>(wide.weights, 1, m.C, m.E, m.C, m.E, down, 0, 1);
    pack_panels<Unit>(m.w2, 1, m.E, m.K, m.E, m.K, packed, 0, 1);
    parallel(threads, [&](int64_t thread, int64_t of) {
        const Range mine = share(m.N * bands.count, thread, of);
        const int64_t space_in = m.space(m.W), in_panel = space_in * PANEL, space = m.space(Wo), panel = space * PANEL;
        const PaddedOf<Unit> r(m.E, bands.rows * m.stride, m.W, reach, wide.table.reach_x);
        const PaddedOf<Unit> dh(m.E, bands.rows * m.stride, m.W, reach, wide.table.reach_x);
        const Operand<Unit> in(space_in, panels(m.C), BOTH), dz(space, panels(m.K), BOTH);
        const Operand<Unit> g(space_in, panels(m.E), BOTH), shifted(space, 1, BOTH);
        Scratch temp(m.stride == 1 ? 0 : STEP * panel), dx(space_in * c);
        const Rows<T> grads{grad, nullptr, nullptr, nullptr, nullptr, m.K}, pixels = wide.up.pixels(m.linear(), x);
        for (int64_t unit = mine.begin; unit < mine.end; unit++) {
            const int64_t n = unit / bands.count;
            const Range out = bands.out(m, unit % bands.count), rows = Bands::in(m, out);
            const Range around = activate(m, wide, x, n, rows, r, in);
            auto through_second = [&](Range part, bool inside) {
                in_steps(part, Wo, m.at_once(), [&](int64_t first, int64_t last) {
                    const int64_t count = (last - first) * Wo;
                    pack_operand(grads, (n * m.Ho() + first) * Wo, count, space, dz);
                    for (int64_t p = 0; p < panels(m.E); p += STEP) {
                        const int64_t end = least(p + STEP, panels(m.E));
                        const Term term{dz.left(0), dz.panel, packed, words<Unit>(m.K)};
                        if (m.stride == 1) {
                            for (int64_t y = first; y < last; y++) {
                                row_product<Unit>(term, y - first, Wo, dh, p, end, y - rows.begin, Sum{false});
                                for (int64_t o = p; o < end; o++) dh.trim(o, y - rows.begin);
                            }
                        } else {
                            product<Unit>(term, count, p, end, m.e(), temp - p * panel, panel, false);
                            spread(m, temp, panel, p, end, first, last, rows.begin, dh);
                        }
                        for (int64_t o = p; inside && o < end; o++) {
                            displaced_panel<Unit>(m, wide.table, r, o, first, last, rows.begin, shifted.left(0),
                                                  shifted.right(0));
                            add_weight_gradient<Unit>(m.second(), shifted.right(0), dz.right(0), dz.panel, words<Unit>(count), o,
                                                      o + 1, sums.w2 + thread * sums.size2);
                        }
                    }
                });
            };
            for (int64_t y = rows.begin - reach; y < around.begin; y++) dh.clear_row(y - rows.begin);
            for (int64_t y = around.end; y < rows.end + reach; y++) dh.clear_row(y - rows.begin);
            through_second({(around.begin + m.stride - 1) / m.stride, out.begin}, false);
            through_second(out, true);
            through_second({out.end, (around.end - 1) / m.stride + 1}, false);
            in_steps(rows, m.W, m.at_once(), [&](int64_t first, int64_t last) {
                const int64_t pixel = (n * m.H + first) * m.W, count = (last - first) * m.W;
                for (int64_t p = 0; p < panels(m.E); p++)
                    at_hidden<Unit>(m, wide.back, r, dh, p, first, last, rows.begin, g.left(p), g.right(p),
                                    sums.of_g() + thread * m.e());
                pack_operand(pixels, pixel, count, space_in, in);
                add_weight_gradient<Unit>(m.first(), g.right(0), in.right(0), in.panel, words<Unit>(count), 0,
                                          panels(m.E), sums.w1 + thread * sums.size1);
                const Term term{g.left(0), g.panel, down, words<Unit>(m.E)};
                product<Unit>(term, count, 0, panels(m.C), m.C, dx, in_panel, false);
                unpack_rows(dx, space_in, pixel, count, m.C, gx);
            });
        }
    });
}

template <class T>
void backward(Module m, const T* grad, const T* x, const float* var, const float* x_mean,
              const float* covariance, T* gx, float* gw1, float* ggamma, float* gbeta, float* gw2, int64_t threads) {
    const Multiplied<UnitOf<T>> w1(m.w1, m.E * m.C);
    m.w1 = w1;
    const Wide<UnitOf<T>> wide(m, x_mean, var);
    const Sums sums(m, threads);
    backward_bands(m, wide, grad, x, gx, sums, threads);
    finish_weight_gradient(m.second(), sums.w2, threads, gw2, nullptr);
    finish_weight_gradient(m.first(), sums.w1, threads, gw1, nullptr, true);
    auto of_g = [&](int64_t e) {
        double total = 0;
        for (int64_t t = 0; t < threads; t++) total += sums.of_g()[t * m.e() + e];
        return total;
    };
    finish_norm(m.linear(), wide, x, UnitOf<T>::PAIRS ? x_mean : nullptr, var, covariance, of_g, gw1, ggamma, gbeta, gx, threads);
}

}  // namespace

#define MODULE                                                                                                   \
    int64_t N, int64_t C, int64_t H, int64_t W, int64_t E, int64_t K, int64_t stride, const void *x,             \
        const float *w1, const float *gamma, const float *beta, const float *w2, const int64_t *offsets, int64_t runs, \
        float eps
#define THE_MODULE {N, C, H, W, E, K, stride, w1, w2, gamma, beta, offsets, runs, eps}

// Tensors are channels last, of dtype 0 float32 or 1 bfloat16; weights and statistics are float32.
API void starshift_csc_forward(int64_t dtype, MODULE, void* z, float* mean, float* var, float* x_mean,
                               float* covariance, int64_t threads) {
    const Module m THE_MODULE;
    if (dtype == 0)
        forward(m, (const float*)x, mean, var, x_mean, covariance, (float*)z, threads);
    else
        forward(m, (const bf16*)x, mean, var, x_mean, covariance, (bf16*)z, threads);
}

API void starshift_csc_backward(int64_t dtype, MODULE, const void* grad, const float* var, const float* x_mean,
                                const float* covariance, void* gx, float* gw1, float* ggamma, float* gbeta, float* gw2,
                                int64_t threads) {
    const Module m THE_MODULE;
    if (dtype == 0)
        backward(m, (const float*)grad, (const float*)x, var, x_mean, covariance, (float*)gx, gw1, ggamma, gbeta, gw2,
                 threads);
    else
        backward(m, (const bf16*)grad, (const bf16*)x, var, x_mean, covariance, (bf16*)gx, gw1, ggamma, gbeta, gw2,
                 threads);
}

// How many floats starshift_csc_pack_for writes: of E middle channels to K, for tensors of one dtype.
API int64_t starshift_csc_packed_floats(int64_t dtype, int64_t E, int64_t K) {
    return (dtype == 0 ? packed_size<Floats> : packed_size<UnitOf<bf16>>)({0, E, 0, 0, K, 1});
}

API void starshift_csc_pack_for(int64_t dtype, int64_t E, int64_t K, const float* w2, const float* b2, float* packed) {
    (dtype == 0 ? pack_conv<Floats> : pack_conv<UnitOf<bf16>>)({0, E, 0, 0, K, 1}, w2, b2, packed);
}

// In inference, see folded.h.
API void starshift_csc_folded(int64_t dtype, int64_t threads, int64_t N, int64_t C, int64_t H, int64_t W, int64_t E,
                              int64_t K, int64_t stride, const void* x, const float* w1, const float* w2,
                              const float* shortcut, const int64_t* offsets, int64_t runs, int64_t after_sum,
                              void* out) {
    const Folded f{{N, E, H, W, K, stride}, C, dtype, w1, w2, shortcut, offsets, runs, after_sum != 0, threads};
    if (dtype == 0)
        run_folded(f, (const float*)x, (float*)out);
    else
        run_folded(f, (const bf16*)x, (bf16*)out);
}
