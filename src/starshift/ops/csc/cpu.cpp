// SPDX-License-Identifier: Apache-2.0
// 1x1 convolution, batch norm, ReLU, shift, 1x1 convolution, and its gradients. See README.md for the passes.
//
// x (N C H W), u = w1 x with E channels, h = scale (u - mean) + bias, r = relu(h), z = w2 shift(r) with K channels.
#include "../shift/conv.h"

#include <cmath>
#include <initializer_list>

namespace {

struct Norm {  // of u: one float a channel, padded to whole panels
    Norm(int64_t channels) : room(5 * panels(channels) * PANEL) {
        float* at = room;
        for (float** p : {&mean, &scale, &bias, &by_u, &constant}) {
            *p = at;
            at += panels(channels) * PANEL;
        }
        for (int64_t i = 0; i < 5 * panels(channels) * PANEL; i++) room[i] = 0;
    }
    void set(int64_t channels, const float* batch_mean, const float* var, const float* gamma, const float* beta,
             float eps) {
        for (int64_t c = 0; c < channels; c++) {
            mean[c] = batch_mean[c];
            scale[c] = gamma[c] / std::sqrt(var[c] + eps);
            bias[c] = beta[c];
        }
    }
    Scratch room;
    float *mean, *scale, *bias;
    float *by_u, *constant;  // gradient of u: scale * g + by_u * (u - mean) + constant
};

// What the shift reads in forward: r, and zero outside.
struct Activated {
    const Norm& norm;
    INLINE auto operator()(const Group<vi>& group) const {
        vf mean = load(norm.mean + group.channel), scale = load(norm.scale + group.channel);
        vf bias = load(norm.bias + group.channel);
        return [=](vf u, vi inside) { return (vf)((vi)vmax0((u - mean) * scale + bias) & inside); };
    }
};

// u - mean, and NaN outside, where neither r nor its gradient exists.
struct Centered {
    const Norm& norm;
    INLINE auto operator()(const Group<vi>& group) const {
        vf mean = load(norm.mean + group.channel);
        return [=](vf u, vi inside) { return (vf)((vi)(u - mean) | ~inside); };
    }
};

// u = x w1, and the sums of (u - center) and its square, [2][E] doubles a thread.
template <class T>
void widen(const Shape& s, int64_t E, const T* x, const float* w1, T* u, float* mean, float* var, int64_t threads) {
    constexpr int64_t CHUNK = 144;
    int64_t rows = s.N * s.H * s.W, e = panels(E) * PANEL;
    Scratch packed(s.C * e), center(e), partial(threads * 4 * E);
    double* parts = reinterpret_cast<double*>((float*)partial);
    clear(partial, threads * 4 * E);
    pack_transposed(w1, E, s.C, packed);
    Rows<T> in{x, nullptr, nullptr, nullptr, nullptr, s.C};
    auto part = [&](int64_t first, int64_t last, float* panel_x, float* panel_u) {
        pack_rows(in, first, last - first, CHUNK, panel_x);
        Term term{panel_x, CHUNK * PANEL, packed, s.C};
        product(&term, 1, CHUNK, 0, panels(E), E, panel_u, CHUNK * PANEL, false);
    };
    {  // the sums are taken around a value near the mean, so that they lose nothing: the first chunk's mean
        Scratch panel_x(CHUNK * s.c()), panel_u(CHUNK * e);
        int64_t n = least(CHUNK, rows);
        part(0, n, panel_x, panel_u);
        for (int64_t c = 0; c < e; c++) {
            float total = 0;
            for (int64_t r = 0; r < n; r++) total += panel_u[(c / PANEL * CHUNK + r) * PANEL + c % PANEL];
            center[c] = total / n;
        }
    }
    parallel(threads, [&](int64_t thread, int64_t of) {
        Range mine = share(rows, thread, of);
        Scratch panel_x(CHUNK * s.c()), panel_u(CHUNK * e);
        for (int64_t r = mine.begin; r < mine.end; r += CHUNK) {
            int64_t last = least(r + CHUNK, mine.end);
            part(r, last, panel_x, panel_u);
            unpack_rows<T>(panel_u, CHUNK, r, last - r, E, u, parts + thread * 2 * E, center);
        }
    });
    for (int64_t c = 0; c < E; c++) {
        double one = 0, two = 0;
        for (int64_t t = 0; t < threads; t++) {
            one += parts[t * 2 * E + c];
            two += parts[t * 2 * E + E + c];
        }
        one /= rows;
        mean[c] = (float)(center[c] + one);
        var[c] = (float)std::fmax(0.0, two / rows - one * one);
        if (one != one) var[c] = (float)one;
    }
}

struct Pointers {
    const float *w1, *w2, *gamma, *beta, *mean, *var;
    const int64_t* offsets;
    int64_t runs;
    float eps;
};

// Sums of g and of g * (u - mean), with g the gradient of h, as [2][E] doubles; and the gradient of w2.
template <class T>
void reduce(const Shape& s, const Pointers& p, const Norm& norm, const T* grad, const T* u, const float* packed,
            double* sums, float* gw2, int64_t threads) {
    constexpr int64_t BLOCK = 8 * PANEL;
    Table<vi> table(p.offsets, p.runs, s.C, 1, false);
    int64_t size = gradient_size(s), e = s.c();
    Scratch parts(threads * size), partial(threads * 4 * e);
    double* all_sums = reinterpret_cast<double*>((float*)partial);
    clear(parts, threads * size);
    clear(partial, threads * 4 * e);
    parallel(threads, [&](int64_t thread, int64_t of) {
        Range share_of_rows = share(s.N * s.Ho(), thread, of);
        int64_t space = s.space(), panel = space * PANEL, Wo = s.Wo();
        Scratch in(space * least(BLOCK, e)), dh(space * least(BLOCK, e)), dz(space * s.k());
        Rows<T> grads{grad, nullptr, nullptr, nullptr, nullptr, s.K};
        float* mine = parts + thread * size;
        double* my_sums = all_sums + thread * 2 * e;
        for (int64_t r = share_of_rows.begin; r < share_of_rows.end; r += s.chunk()) {
            int64_t last = least(r + s.chunk(), share_of_rows.end), rows = (last - r) * Wo;
            pack_rows(grads, r * Wo, rows, space, dz);
            for (int64_t c0 = 0; c0 < s.C; c0 += BLOCK) {
                int64_t c1 = least(c0 + BLOCK, s.C), p0 = c0 / PANEL, p1 = panels(c1);
                pack_displaced(table, s, u, {c0 / VL, (c1 + VL - 1) / VL}, r, last, space, in, Centered{norm});
                Term term{dz, panel, packed, s.K};
                product(&term, 1, space, p0, p1, s.C, dh - p0 * panel, panel, false);
                for (int64_t c = c0; c < p1 * PANEL; c += VL) {
                    int64_t at = (c - c0) / PANEL * panel + c % PANEL;
                    vf scale = load(norm.scale + c), bias = load(norm.bias + c), one = {}, two = {};
                    for (int64_t i = at; i < at + rows * PANEL; i += PANEL) {
                        vf d = load(in + i), h = d * scale + bias, g = load(dh + i);
                        vi on = h > 0.0f;
                        store(in + i, select(on, h, (vf){}));
                        one += select(on, g, (vf){});
                        two += select(on, g * d, (vf){});
                    }
                    for (int l = 0; l < VL; l++) {
                        my_sums[c + l] += one[l];
                        my_sums[e + c + l] += two[l];
                    }
                }
                add_weight_gradient(s, in, dz, space, rows, p0, p1, mine);
            }
        }
    });
    for (int64_t i = 0; i < 2 * e; i++) {
        sums[i] = 0;
        for (int64_t t = 0; t < threads; t++) sums[i] += all_sums[t * 2 * e + i];
    }
    finish_weight_gradient(s, parts, threads, gw2, nullptr);
}

// The gradient of u pixel after pixel, and with it those of x and w1. C: channels of x; s.C are those of u.
template <class T>
void narrow(const Shape& s, int64_t C, const Pointers& p, const Norm& norm, const T* grad, const T* x, const T* u,
            const float* packed, T* gx, float* gw1, int64_t threads) {
    Table<vi> back(p.offsets, p.runs, s.C, -1, false);
    Shape inner{s.N, s.C, s.H, s.W, C, 1};
    int64_t size = gradient_size(inner);
    Scratch parts(threads * size), packed1(s.C * inner.k());
    pack(p.w1, s.C, C, packed1);
    clear(parts, threads * size);
    parallel(threads, [&](int64_t thread, int64_t of) {
        Range images = share(s.N, thread, of);
        int64_t lines = round_up(most(s.W, s.pixels), ROW_MULTIPLE), full = lines / s.W * s.W, filled = 0;
        Ring ring(s, back.reach, panels(s.C));
        Scratch dz(s.space() * s.k()), du(lines * s.c()), in(lines * inner.k()), dx(lines * inner.k());
        Rows<T> grads{grad, nullptr, nullptr, nullptr, nullptr, s.K}, rows_x{x, nullptr, nullptr, nullptr, nullptr, C};
        float* mine = parts + thread * size;
        int64_t origin = images.begin * s.Ho(), begin = images.begin * s.H * s.W;  // of du's first line
        auto flush = [&]() {
            int64_t space = least(lines, round_up(filled, ROW_MULTIPLE));
            Term term{du, lines * PANEL, packed1, s.C};
            product(&term, 1, space, 0, panels(C), C, dx, lines * PANEL, false);
            unpack_rows(dx, lines, begin, filled, C, gx);
            pack_rows(rows_x, begin, filled, lines, in);
            add_weight_gradient(inner, du, in, lines, filled, 0, panels(s.C), mine);
            begin += filled;
            filled = 0;
        };
        auto make = [&](int64_t first, int64_t last, float* to) {
            pack_rows(grads, (origin + first) * s.Wo(), (last - first) * s.Wo(), s.space(), dz);
            Term term{dz, s.space() * PANEL, packed, s.K};
            product(&term, 1, s.space(), 0, panels(s.C), s.C, to, ring.panel, false);
        };
        auto done = [&](int64_t n, int64_t y) {
            const T* line = u + (n * s.H + y) * s.W * s.C;
            float* to = du + filled * PANEL;
            collect_row(back, s, ring, {0, back.count}, images.begin, n, y, [&](const Group<vi>& group) {
                int64_t c = group.channel;
                vf mean = load(norm.mean + c), scale = load(norm.scale + c), bias = load(norm.bias + c);
                vf by_u = load(norm.by_u + c), constant = load(norm.constant + c);
                const T* at = line + c;
                float* put = to + c / PANEL * lines * PANEL + c % PANEL;
                int lanes = (int)group.n;
                int64_t step = s.C;
                if (c / VL % PER_LINE<T> == 0) fetch_ahead(at + s.W * s.C, s, u);
                return [=](int64_t q, vf g) {
                    vf d = load_n(at + q * step, lanes) - mean;
                    g = select(d * scale + bias <= 0.0f, (vf){}, g);
                    store(put + q * PANEL, g * scale + (d * by_u + constant));
                };
            });
            filled += s.W;
            if (filled == full) flush();
        };
        through_ring(s, ring, back.reach, images.begin, images.end, make, done);
        if (filled) flush();
    });
    finish_weight_gradient(inner, parts, threads, gw1, nullptr, true);
}

// Chunks such that all that one works on stays in the second cache.
INLINE Shape wide_shape(int64_t N, int64_t E, int64_t H, int64_t W, int64_t K, int64_t stride) {
    return {N, E, H, W, K, stride, E > 256 ? 72 : 144};
}

template <class T>
void forward(int64_t N, int64_t C, int64_t H, int64_t W, int64_t E, int64_t K, int64_t stride, const T* x,
             const Pointers& p, T* u, float* mean, float* var, T* z, int64_t threads) {
    widen<T>({N, C, H, W, E, 1}, E, x, p.w1, u, mean, var, threads);
    Norm norm(E);
    norm.set(E, mean, var, p.gamma, p.beta, p.eps);
    conv_forward(wide_shape(N, E, H, W, K, stride), p.offsets, p.runs, u, p.w2, nullptr, z, threads, Activated{norm});
}

template <class T>
void backward(int64_t N, int64_t C, int64_t H, int64_t W, int64_t E, int64_t K, int64_t stride, const T* grad,
              const T* x, const T* u, const Pointers& p, T* gx, float* gw1, float* ggamma, float* gbeta, float* gw2,
              int64_t threads) {
    threads = most(1, least(threads, N));
    Shape s = wide_shape(N, E, H, W, K, stride);
    Norm norm(E);
    norm.set(E, p.mean, p.var, p.gamma, p.beta, p.eps);
    Scratch packed(K * s.c()), room(4 * s.c());
    double* sums = reinterpret_cast<double*>((float*)room);
    pack(p.w2, K, E, packed);
    reduce(s, p, norm, grad, u, packed, sums, gw2, threads);
    double count = (double)(N * H * W);
    for (int64_t c = 0; c < E; c++) {
        double inverse = 1 / std::sqrt((double)p.var[c] + p.eps);
        gbeta[c] = (float)sums[c];
        ggamma[c] = (float)(sums[s.c() + c] * inverse);
        norm.by_u[c] = (float)(-norm.scale[c] * inverse * inverse * sums[s.c() + c] / count);
        norm.constant[c] = (float)(-norm.scale[c] * sums[c] / count);
    }
    narrow(s, C, p, norm, grad, x, u, packed, gx, gw1, threads);
}

}  // namespace

// Tensors are channels last, of dtype 0 float32 or 1 bfloat16; weights and statistics are float32.
API void starshift_csc_forward(int64_t dtype, int64_t N, int64_t C, int64_t H, int64_t W, int64_t E, int64_t K,
                               int64_t stride, const void* x, const float* w1, const float* gamma, const float* beta,
                               const float* w2, const int64_t* offsets, int64_t runs, float eps, void* u, float* mean,
                               float* var, void* z, int64_t threads) {
    Pointers p{w1, w2, gamma, beta, mean, var, offsets, runs, eps};
    if (dtype == 0)
        forward(N, C, H, W, E, K, stride, (const float*)x, p, (float*)u, mean, var, (float*)z, threads);
    else
        forward(N, C, H, W, E, K, stride, (const bf16*)x, p, (bf16*)u, mean, var, (bf16*)z, threads);
}

API void starshift_csc_backward(int64_t dtype, int64_t N, int64_t C, int64_t H, int64_t W, int64_t E, int64_t K,
                                int64_t stride, const void* grad, const void* x, const float* w1, const float* gamma,
                                const float* beta, const float* w2, const void* u, const float* mean, const float* var,
                                const int64_t* offsets, int64_t runs, float eps, void* gx, float* gw1, float* ggamma,
                                float* gbeta, float* gw2, int64_t threads) {
    Pointers p{w1, w2, gamma, beta, mean, var, offsets, runs, eps};
    if (dtype == 0)
        backward(N, C, H, W, E, K, stride, (const float*)grad, (const float*)x, (const float*)u, p, (float*)gx, gw1,
                 ggamma, gbeta, gw2, threads);
    else
        backward(N, C, H, W, E, K, stride, (const bf16*)grad, (const bf16*)x, (const bf16*)u, p, (bf16*)gx, gw1,
                 ggamma, gbeta, gw2, threads);
}
