// SPDX-License-Identifier: Apache-2.0
// A linear map of narrow pixels, u = w x, and the batch norm after it, h = scale (u - mean) + beta. The batch's statistics
// of u follow from the mean and the covariance of x, and so do the two sums that the gradient of a batch norm needs:
// README.md has the algebra. So u is used up where it is made.
#pragma once
#include <cmath>

#include "chunks.h"

constexpr int64_t SAMPLE = 288;  // pixels whose products are summed in float32

// C channels of x, E of u; w (E, C), gamma and beta (E).
struct Linear {
    int64_t pixels, C, E;
    const float *w, *gamma, *beta;
    float eps;

    int64_t c() const { return panels(C) * PANEL; }
    int64_t e() const { return panels(E) * PANEL; }
};

template <class T>
Rows<T> centered(const Linear& m, const T* x, const float* minus_mean) {
    return {x, nullptr, nullptr, nullptr, minus_mean, m.C};
}

// Mean (C) and biased covariance (C, C) of the pixels of x: sums of each SAMPLE of pixels around a value near the mean in
// float32, added up in double.
template <class T>
void moments(const Linear& m, const T* x, float* mean, float* covariance, int64_t threads) {
    const int64_t c = m.c(), P = panels(m.C), size = c + P * P * PANEL * PANEL, pixels = m.pixels;
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

// Mean and biased variance of u = w x.
inline void statistics(const Linear& m, const float* x_mean, const float* covariance, float* mean, float* var,
                       int64_t threads) {
    parallel(threads, [&](int64_t thread, int64_t of) {
        const Range mine = share(m.E, thread, of);
        Scratch room(2 * m.C);
        double* row = reinterpret_cast<double*>((float*)room);
        for (int64_t e = mine.begin; e < mine.end; e++) {
            const float* w = m.w + e * m.C;
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

// The map with the norm's scale in its weights.
struct Scaled {
    Scaled(const Linear& m, const float* x_mean, const float* var)
        : scale(m.e()), weights(m.E * m.C), minus_mean(m.c()) {
        clear(scale, m.e());
        clear(minus_mean, m.c());
        for (int64_t i = 0; i < m.C; i++) minus_mean[i] = -x_mean[i];
        for (int64_t e = 0; e < m.E; e++) {
            scale[e] = m.gamma[e] / std::sqrt(var[e] + m.eps);
            for (int64_t i = 0; i < m.C; i++) weights[e * m.C + i] = scale[e] * m.w[e * m.C + i];
        }
    }
    Scratch scale, weights, minus_mean;  // the first and last of whole panels
};

// Weights as products take them: of pairs rounded, and then everywhere, so that the norm normalises what is multiplied.
template <class Unit>
class Multiplied {
    Scratch rounded_;
    const float* w_;

  public:
    Multiplied(const float* w, int64_t n) : rounded_(Unit::PAIRS ? n : 0), w_(Unit::PAIRS ? rounded_ : w) {
        for (int64_t i = 0; Unit::PAIRS && i < n; i += VL) {
            const int part = (int)least(VL, n - i);
            store_n(rounded_ + i, Unit::rounded(load_n(w + i, part)), part);
        }
    }
    operator const float*() const { return w_; }
};

// c = scale[column] * ..., and with bias and ReLU.
template <int N>
struct HeldScale {
    Held<N> scale;
    static INLINE vf begin(const void*, int) { return (vf){}; }
    INLINE vf end(vf sum, int i) const { return sum * scale.of[i]; }
};
struct Times {
    const float* scale;
    template <int N>
    INLINE HeldScale<N> held() const { return {Held<N>(scale)}; }
    INLINE Times at(int64_t column) const { return {scale + column}; }
};
template <int N>
struct HeldScaleBias {
    Held<N> scale, bias;
    static INLINE vf begin(const void*, int) { return (vf){}; }
    INLINE vf end(vf sum, int i) const { return vmax0(sum * scale.of[i] + bias.of[i]); }
};
struct TimesBiasRelu {
    const float *scale, *bias;
    template <int N>
    INLINE HeldScaleBias<N> held() const { return {Held<N>(scale), Held<N>(bias)}; }
    INLINE TimesBiasRelu at(int64_t column) const { return {scale + column, bias + column}; }
};

// The map as a product makes h of it. Of floats: of x less its mean, the norm's scale in the weights. Of pairs: of x and w,
// which are such pairs without rounding, scaled afterwards: what is rounded moves across the activation's kink. The sums
// of g x' are then those of g (x - mean)' once the mean times the sum of g, as multiplied, is taken off (finish_norm).
template <class Unit>
struct Up {
    Up(const Linear& m, const Scaled& map, const float* x_mean)
        : weights(m.e() * words<Unit>(m.C)), bias(m.e()), scale(map.scale), minus_mean(map.minus_mean) {
        pack_panels<Unit>(Unit::PAIRS ? m.w : (const float*)map.weights, m.C, 1, m.C, m.E, m.C, weights, 0, 1);
        copy_padded(m.beta, m.E, m.e(), bias);
        for (int64_t e = 0; Unit::PAIRS && e < m.E; e++) {
            double mean = 0;
            for (int64_t i = 0; i < m.C; i++) mean += (double)m.w[e * m.C + i] * x_mean[i];
            bias[e] -= (float)(scale[e] * mean);
        }
    }
    template <class T>
    Rows<T> pixels(const Linear& m, const T* x) const {
        return {x, nullptr, nullptr, nullptr, Unit::PAIRS ? nullptr : minus_mean, m.C};
    }
    auto edge() const {
        if constexpr (Unit::PAIRS)
            return Times{scale};
        else
            return Sum{false};
    }
    auto relu_edge() const {
        if constexpr (Unit::PAIRS)
            return TimesBiasRelu{scale, bias};
        else
            return BiasRelu{bias};
    }
    Scratch weights, bias;
    const float *scale, *minus_mean;
};

// gx += a (x - mean) + b: what the norm's sums contribute.
template <class T>
void add_sums(const Linear& m, const Scaled& wide, const T* x, const float* a, const float* b, T* gx,
              int64_t threads) {
    const int64_t c = m.c();
    Scratch packed(m.C * c);
    pack_panels(a, 1, m.C, m.C, m.C, m.C, packed, 0, 1);
    parallel(threads, [&](int64_t thread, int64_t of) {
        const Range mine = share(m.pixels, thread, of);
        constexpr int64_t SPACE = 144;
        Scratch in(SPACE * c), result(SPACE * c);
        const Rows<T> pixels = centered(m, x, wide.minus_mean), so_far{gx, nullptr, nullptr, nullptr, b, m.C};
        for (int64_t first = mine.begin; first < mine.end; first += SPACE) {
            const int64_t n = least(SPACE, mine.end - first);
            pack_rows(pixels, first, n, SPACE, in);
            pack_rows(so_far, first, n, SPACE, result);
            Term term{in, SPACE * PANEL, packed, m.C};
            product(term, n, 0, panels(m.C), m.C, result, SPACE * PANEL, true);
            unpack_rows(result, SPACE, first, n, m.C, gx);
        }
    });
}

// Completes the gradients once all pixels have been seen, and adds to gx what the norm's sums contribute.
// gw (E, C): in, the sum over pixels of g (x - mean)' with g the gradient of h, or of g x' and then x_mean is given;
// of_g(e): the sum of g.
template <class T, class Sum>
void finish_norm(const Linear& m, const Scaled& wide, const T* x, const float* x_mean, const float* var,
                 const float* covariance, const Sum& of_g, float* gw, float* ggamma, float* gbeta, T* gx, int64_t threads) {
    const double pixels = (double)m.pixels;
    const int64_t size = m.C * m.C + m.c();  // a, then b
    Scratch parts(threads * size);
    clear(parts, threads * size);
    threads = parallel(threads, [&](int64_t thread, int64_t of) {
        const Range mine = share(m.E, thread, of);
        Scratch row(m.C);
        float *a = parts + thread * size, *b = a + m.C * m.C;
        for (int64_t e = mine.begin; e < mine.end; e++) {
            const float* w = m.w + e * m.C;
            float* g = gw + e * m.C;
            const double sum_of_g = of_g(e);
            for (int64_t i = 0; x_mean && i < m.C; i++) g[i] -= (float)(sum_of_g * x_mean[i]);
            double of_both = 0;
            for (int64_t i = 0; i < m.C; i++) of_both += (double)w[i] * g[i];
            const double inverse = 1 / std::sqrt((double)var[e] + m.eps);
            gbeta[e] = (float)sum_of_g;
            ggamma[e] = (float)(of_both * inverse);
            const float by_u = (float)(-wide.scale[e] * inverse * inverse * of_both / pixels);
            const float constant = (float)(-wide.scale[e] * sum_of_g / pixels);
            clear(row, m.C);
            for (int64_t i = 0; i < m.C; i++) {
                const float factor = w[i] * by_u;
                b[i] += w[i] * constant;
                for (int64_t j = 0; j < m.C; j++) a[i * m.C + j] += factor * w[j];
                for (int64_t j = 0; j < m.C; j++) row[j] += w[i] * covariance[i * m.C + j];
            }
            for (int64_t j = 0; j < m.C; j++) g[j] = wide.scale[e] * g[j] + by_u * (float)pixels * row[j];
        }
    });
    add_threads(parts, size, threads);
    add_sums(m, wide, x, parts, parts + m.C * m.C, gx, threads);
}
