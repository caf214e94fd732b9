// SPDX-License-Identifier: Apache-2.0
// 1x1 convolution, batch norm, ReLU, shift, 1x1 convolution, and its gradients, without the wide tensor in memory.
//
// x (N C H W), u = w1 x with E channels, h = scale (u - mean) + bias, r = relu(h), z = w2 shift(r) with K channels. The
// batch's statistics of u follow from the mean and the covariance of x, and so do the two sums that the gradient of a
// batch norm needs: README.md has the algebra. h is made anew for a band of rows at a time, wherever it is needed.
#include "../shift/conv.h"
#include "chunks.h"
#include "padded.h"

#include <cmath>

namespace {

constexpr int64_t CACHED = 160 * 1024;          // floats of the wide tensors of a band
constexpr int64_t SAMPLE = 288;                 // pixels whose products are summed in float32

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
    int64_t pixels() const { return N * H * W; }
    int64_t at_once() const { return E > 512 ? 72 : 144; }  // pixels
    // Lines of a panel that holds whole rows of so many pixels, and what a product of the last of them writes.
    int64_t space(int64_t width) const { return round_up(most(1, at_once() / width) * width + ROW_MULTIPLE, ROW_MULTIPLE); }
    Shape first() const { return {N, E, H, W, C, 1}; }      // of the gradients (E, C) and (E, K), see conv.h
    Shape second() const { return {N, E, H, W, K, stride}; }
};

template <class T>
Rows<T> centered(const Module& m, const T* x, const float* minus_mean) {
    return {x, nullptr, nullptr, nullptr, minus_mean, m.C};
}

// Mean (C) and biased covariance (C, C) of the pixels of x: sums of each SAMPLE of pixels around a value near the mean in
// float32, added up in double.
template <class T>
void moments(const Module& m, const T* x, float* mean, float* covariance, int64_t threads) {
    const int64_t c = m.c(), P = panels(m.C), size = c + P * P * PANEL * PANEL, pixels = m.pixels();
    Scratch minus_near(c), partial(2 * threads * size);
    double* parts = reinterpret_cast<double*>((float*)partial);
    clear(partial, 2 * threads * size);
    clear(minus_near, c);
    const int64_t few = least(SAMPLE, pixels);
    for (int64_t i = 0; i < m.C; i++) {
        for (int64_t r = 0; r < few; r++) minus_near[i] -= load1(x + r * m.C + i);
        minus_near[i] /= few;
    }
    const Rows<T> rows = centered(m, x, minus_near);
    parallel(threads, [&](int64_t thread, int64_t of) {
        const Range mine = share(pixels, thread, of);
        Scratch in(SAMPLE * c), sums(size);
        double* to = parts + thread * size;
        for (int64_t first = mine.begin; first < mine.end; first += SAMPLE) {
            const int64_t n = least(SAMPLE, mine.end - first);
            clear(sums, size);
            pack_rows(rows, first, n, SAMPLE, in, sums);
            for (int64_t p = 0; p < P; p++)
                for (int64_t q = p; q < P; q++)
                    outer(in + p * SAMPLE * PANEL, in + q * SAMPLE * PANEL, n, PANEL, sums + c + (p * P + q) * PANEL * PANEL);
            for (int64_t i = 0; i < size; i++) to[i] += sums[i];
        }
    });
    for (int64_t t = 1; t < threads; t++)
        for (int64_t i = 0; i < size; i++) parts[i] += parts[t * size + i];
    for (int64_t i = 0; i < m.C; i++) mean[i] = (float)(parts[i] / pixels - minus_near[i]);
    for (int64_t i = 0; i < m.C; i++)
        for (int64_t j = i; j < m.C; j++) {
            const double product = parts[c + ((i / PANEL * P + j / PANEL) * PANEL + i % PANEL) * PANEL + j % PANEL];
            const double value = (product - parts[i] * parts[j] / pixels) / pixels;
            covariance[i * m.C + j] = covariance[j * m.C + i] = (float)value;
        }
}

// Mean and biased variance of u = w1 x.
void statistics(const Module& m, const float* x_mean, const float* covariance, float* mean, float* var,
                int64_t threads) {
    parallel(threads, [&](int64_t thread, int64_t of) {
        const Range mine = share(m.E, thread, of);
        Scratch room(2 * m.C);
        double* row = reinterpret_cast<double*>((float*)room);
        for (int64_t e = mine.begin; e < mine.end; e++) {
            const float* w = m.w1 + e * m.C;
            double middle = 0, spread = 0;
            for (int64_t j = 0; j < m.C; j++) row[j] = 0;
            for (int64_t i = 0; i < m.C; i++) {
                middle += (double)w[i] * x_mean[i];
                for (int64_t j = 0; j < m.C; j++) row[j] += (double)w[i] * covariance[i * m.C + j];
            }
            for (int64_t j = 0; j < m.C; j++) spread += row[j] * w[j];
            mean[e] = (float)middle;
            var[e] = (float)(spread < 0 ? 0 : spread);
        }
    });
}

// What all bands share: the first convolution with the norm's scale in its weights, and the displacements.
struct Wide {
    Wide(const Module& m, const float* x_mean, const float* var)
        : scale(m.E), weights(m.E * m.C), up(m.e() * m.C), bias(m.e()), minus_mean(m.c()),
          table(m.offsets, m.runs, m.E, 1, false), back(m.offsets, m.runs, m.E, -1, false) {
        clear(bias, m.e());
        clear(minus_mean, m.c());
        for (int64_t i = 0; i < m.C; i++) minus_mean[i] = -x_mean[i];
        for (int64_t e = 0; e < m.E; e++) {
            scale[e] = m.gamma[e] / std::sqrt(var[e] + m.eps);
            bias[e] = m.beta[e];
            for (int64_t i = 0; i < m.C; i++) weights[e * m.C + i] = scale[e] * m.w1[e * m.C + i];
        }
        pack_transposed(weights, m.E, m.C, up);
    }
    Scratch scale, weights, up, bias, minus_mean;
    Table<vi> table, back;
};

// Bands of an image: rows of z, and the rows of x under them.
struct Bands {
    int64_t rows, count;
    Bands(const Module& m, const Wide& wide) {
        const int64_t line = 2 * m.e() * (m.W + 2 * wide.table.reach_x);
        const int64_t fit = (CACHED / line - 2 * wide.table.reach) / m.stride;
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

// Panels first .. last of a row of `to`: the row-th W pixels of a matrix times another.
INLINE void row_product(Term term, int64_t row, int64_t W, const Padded& to, int64_t first, int64_t last, int64_t y) {
    term.a += row * W * PANEL;
    product(&term, 1, W, first, last, last * PANEL, to.at(0, y, 0), to.panel, false);
}

// r for a band of image n and the rows beside it that the shift reaches. Returns those that there are.
template <class T>
Range activate(const Module& m, const Wide& wide, const T* x, int64_t n, Range band, const Padded& r, float* in) {
    const int64_t origin = band.begin, reach = wide.table.reach;
    const Range rows = widened(band, reach, m.H);
    for (int64_t y = origin - reach; y < rows.begin; y++) r.clear_row(y - origin);
    for (int64_t y = rows.end; y < band.end + reach; y++) r.clear_row(y - origin);
    const int64_t space = m.space(m.W);
    const Rows<T> pixels = centered(m, x, wide.minus_mean);
    in_steps(rows, m.W, m.at_once(), [&](int64_t first, int64_t last) {
        pack_rows(pixels, (n * m.H + first) * m.W, (last - first) * m.W, space, in);
        for (int64_t p = 0; p < panels(m.E); p += STEP)
            for (int64_t y = first; y < last; y++) {
                const int64_t end = least(p + STEP, panels(m.E));
                row_product({in, space * PANEL, wide.up, m.C}, y - first, m.W, r, p, end, y - origin);
                for (int64_t o = p; o < end; o++) {
                    for (int v = 0; v < VECTORS; v++) {
                        const vf bias = load(wide.bias + o * PANEL + v * VL);
                        float* at = r.at(o, y - origin, 0) + v * VL;
                        for (int64_t i = 0; i < m.W; i++, at += PANEL) store(at, vmax0(load(at) + bias));
                    }
                    r.trim(o, y - origin);
                }
            }
    });
    return rows;
}

// Panel p of what the second convolution reads for rows first .. last of z.
void displaced_panel(const Module& m, const Table<vi>& table, const Padded& r, int64_t p, int64_t first, int64_t last,
                     int64_t origin, float* to) {
    const int64_t Wo = m.Wo();
    for (int v = 0; v < VECTORS; v++) {
        const int64_t g = p * VECTORS + v;
        for (int64_t y = first; y < last; y++) {
            float* at = to + (y - first) * Wo * PANEL + v * VL;
            if (g < table.count)
                gather_padded(table[g], r.at(p, y * m.stride - origin, 0) + v * VL, r.line, m.stride * PANEL, Wo,
                              [&](int64_t i, vf value) { store(at + i * PANEL, value); });
            else
                for (int64_t i = 0; i < Wo; i++) store(at + i * PANEL, (vf){});
        }
    }
}

template <class T>
void forward(const Module& m, const T* x, float* mean, float* var, float* x_mean, float* covariance, T* z,
             int64_t threads) {
    moments(m, x, x_mean, covariance, threads);
    statistics(m, x_mean, covariance, mean, var, threads);
    const Wide wide(m, x_mean, var);
    const Bands bands(m, wide);
    const int64_t k = panels(m.K) * PANEL, reach = wide.table.reach, Wo = m.Wo();
    Scratch packed(m.E * k);
    pack_transposed(m.w2, m.K, m.E, packed);
    parallel(threads, [&](int64_t thread, int64_t of) {
        const Range mine = share(m.N * bands.count, thread, of);
        const int64_t space_in = m.space(m.W), space = m.space(Wo), panel = space * PANEL;
        const Padded r(m.E, bands.rows * m.stride, m.W, reach, wide.table.reach_x);
        Scratch in(space_in * m.c()), gathered(space * m.e()), result(space * k);
        r.clear();
        for (int64_t unit = mine.begin; unit < mine.end; unit++) {
            const int64_t n = unit / bands.count;
            const Range out = bands.out(m, unit % bands.count), rows = Bands::in(m, out);
            activate(m, wide, x, n, rows, r, in);
            in_steps(out, Wo, m.at_once(), [&](int64_t first, int64_t last) {
                for (int64_t p = 0; p < panels(m.E); p++)
                    displaced_panel(m, wide.table, r, p, first, last, rows.begin, gathered + p * panel);
                Term term{gathered, panel, packed, m.E};
                product(&term, 1, (last - first) * Wo, 0, panels(m.K), m.K, result, panel, false);
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

// g, the gradient of h, for rows first .. last of a band, in panels; its sums are added.
void at_hidden(const Module& m, const Table<vi>& back, const Padded& r, const Padded& dh, int64_t first, int64_t last,
               int64_t origin, int64_t panel, float* g, double* sums) {
    for (int64_t group = 0; group < panels(m.E) * VECTORS; group++) {
        const int64_t p = group / VECTORS, v = group % VECTORS * VL;
        vf total = {};
        for (int64_t y = first; y < last; y++) {
            float* to = g + p * panel + (y - first) * m.W * PANEL + v;
            if (group >= back.count) {
                for (int64_t i = 0; i < m.W; i++) store(to + i * PANEL, (vf){});
                continue;
            }
            const float* on = r.at(p, y - origin, 0) + v;
            gather_padded(back[group], dh.at(p, y - origin, 0) + v, dh.line, PANEL, m.W, [&](int64_t i, vf value) {
                value = select(load(on + i * PANEL) <= 0.0f, (vf){}, value);
                store(to + i * PANEL, value);
                total += value;
            });
        }
        for (int i = 0; i < VL; i++) sums[p * PANEL + v + i] += total[i];
    }
}

// Panels p .. end of rows first .. last of z to where they stand among the rows of x.
void spread(const Module& m, const float* from, int64_t panel, int64_t p, int64_t end, int64_t first, int64_t last,
            int64_t origin, const Padded& to) {
    for (int64_t o = p; o < end; o++, from += panel)
        for (int64_t y = first; y < last; y++)
            for (int64_t i = 0; i < m.Wo(); i++)
                for (int v = 0; v < PANEL; v += VL)
                    store(to.at(o, y * m.stride - origin, i * m.stride) + v,
                          load(from + ((y - first) * m.Wo() + i) * PANEL + v));
}

// All but what the norm's sums contribute to the gradient of x.
template <class T>
void backward_bands(const Module& m, const Wide& wide, const T* grad, const T* x, T* gx, const Sums& sums,
                    int64_t threads) {
    const Bands bands(m, wide);
    const int64_t reach = wide.table.reach, Wo = m.Wo(), c = m.c(), k = panels(m.K) * PANEL;
    Scratch down(m.E * c), packed(m.K * m.e());
    pack(wide.weights, m.E, m.C, down);
    pack(m.w2, m.K, m.E, packed);
    parallel(threads, [&](int64_t thread, int64_t of) {
        const Range mine = share(m.N * bands.count, thread, of);
        const int64_t space_in = m.space(m.W), in_panel = space_in * PANEL, space = m.space(Wo), panel = space * PANEL;
        const Padded r(m.E, bands.rows * m.stride, m.W, reach, wide.table.reach_x);
        const Padded dh(m.E, bands.rows * m.stride, m.W, reach, wide.table.reach_x);
        Scratch in(space_in * c), temp(STEP * panel), dz(space * k), g(space_in * m.e()), dx(space_in * c);
        const Rows<T> grads{grad, nullptr, nullptr, nullptr, nullptr, m.K}, pixels = centered(m, x, wide.minus_mean);
        r.clear();
        dh.clear();
        for (int64_t unit = mine.begin; unit < mine.end; unit++) {
            const int64_t n = unit / bands.count;
            const Range out = bands.out(m, unit % bands.count), rows = Bands::in(m, out);
            const Range around = activate(m, wide, x, n, rows, r, in);
            auto through_second = [&](Range part, bool count) {
                in_steps(part, Wo, m.at_once(), [&](int64_t first, int64_t last) {
                    pack_rows(grads, (n * m.Ho() + first) * Wo, (last - first) * Wo, space, dz);
                    for (int64_t p = 0; p < panels(m.E); p += STEP) {
                        const int64_t end = least(p + STEP, panels(m.E));
                        const Term term{dz, panel, packed, m.K};
                        if (m.stride == 1) {
                            for (int64_t y = first; y < last; y++) {
                                row_product(term, y - first, Wo, dh, p, end, y - rows.begin);
                                for (int64_t o = p; o < end; o++) dh.trim(o, y - rows.begin);
                            }
                        } else {
                            product(&term, 1, (last - first) * Wo, p, end, m.e(), temp - p * panel, panel, false);
                            spread(m, temp, panel, p, end, first, last, rows.begin, dh);
                        }
                        for (int64_t o = p; count && o < end; o++) {
                            displaced_panel(m, wide.table, r, o, first, last, rows.begin, temp);
                            add_weight_gradient(m.second(), temp, dz, space, (last - first) * Wo, o, o + 1,
                                                sums.w2 + thread * sums.size2);
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
                at_hidden(m, wide.back, r, dh, first, last, rows.begin, in_panel, g, sums.of_g() + thread * m.e());
                pack_rows(pixels, pixel, count, space_in, in);
                add_weight_gradient(m.first(), g, in, space_in, count, 0, panels(m.E), sums.w1 + thread * sums.size1);
                Term term{g, in_panel, down, m.E};
                product(&term, 1, count, 0, panels(m.C), m.C, dx, in_panel, false);
                unpack_rows(dx, space_in, pixel, count, m.C, gx);
            });
        }
    });
}

// gx += a (x - mean) + b: what the norm's sums contribute.
template <class T>
void add_sums(const Module& m, const Wide& wide, const T* x, const float* a, const float* b, T* gx, int64_t threads) {
    const int64_t c = m.c();
    Scratch packed(m.C * c);
    pack(a, m.C, m.C, packed);
    parallel(threads, [&](int64_t thread, int64_t of) {
        const Range mine = share(m.pixels(), thread, of);
        constexpr int64_t SPACE = 144;
        Scratch in(SPACE * c), result(SPACE * c);
        const Rows<T> pixels = centered(m, x, wide.minus_mean), so_far{gx, nullptr, nullptr, nullptr, b, m.C};
        for (int64_t first = mine.begin; first < mine.end; first += SPACE) {
            const int64_t n = least(SPACE, mine.end - first);
            pack_rows(pixels, first, n, SPACE, in);
            pack_rows(so_far, first, n, SPACE, result);
            Term term{in, SPACE * PANEL, packed, m.C};
            product(&term, 1, n, 0, panels(m.C), m.C, result, SPACE * PANEL, true);
            unpack_rows(result, SPACE, first, n, m.C, gx);
        }
    });
}

template <class T>
void backward(const Module& m, const T* grad, const T* x, const float* var, const float* x_mean,
              const float* covariance, T* gx, float* gw1, float* ggamma, float* gbeta, float* gw2, int64_t threads) {
    const Wide wide(m, x_mean, var);
    const Sums sums(m, threads);
    backward_bands(m, wide, grad, x, gx, sums, threads);
    finish_weight_gradient(m.second(), sums.w2, threads, gw2, nullptr);
    finish_weight_gradient(m.first(), sums.w1, threads, gw1, nullptr, true);
    const double pixels = (double)m.pixels();
    Scratch a(m.C * m.C), b(m.c()), row(m.C);
    clear(a, m.C * m.C);
    clear(b, m.c());
    for (int64_t e = 0; e < m.E; e++) {
        const float* w = m.w1 + e * m.C;
        float* g = gw1 + e * m.C;  // the sum of g (x - mean)' so far
        double of_g = 0, of_both = 0;
        for (int64_t t = 0; t < threads; t++) of_g += sums.of_g()[t * m.e() + e];
        for (int64_t i = 0; i < m.C; i++) of_both += (double)w[i] * g[i];
        const double inverse = 1 / std::sqrt((double)var[e] + m.eps);
        gbeta[e] = (float)of_g;
        ggamma[e] = (float)(of_both * inverse);
        const float by_u = (float)(-wide.scale[e] * inverse * inverse * of_both / pixels);
        const float constant = (float)(-wide.scale[e] * of_g / pixels);
        clear(row, m.C);
        for (int64_t i = 0; i < m.C; i++) {
            const float factor = w[i] * by_u;
            b[i] += w[i] * constant;
            for (int64_t j = 0; j < m.C; j++) a[i * m.C + j] += factor * w[j];
            for (int64_t j = 0; j < m.C; j++) row[j] += w[i] * covariance[i * m.C + j];
        }
        for (int64_t j = 0; j < m.C; j++) g[j] = wide.scale[e] * g[j] + by_u * (float)pixels * row[j];
    }
    add_sums(m, wide, x, a, b, gx, threads);
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
