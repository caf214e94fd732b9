// SPDX-License-Identifier: Apache-2.0
// 1x1 convolution, batch norm and activation, and the gradients, without the convolution's result in memory.
//
// x has C channels, y = act(scale (w x - mean) + beta) has E. Both passes take pixels in chunks, the forward one stores y,
// the backward one makes w x anew and uses the gradient at y up where it reads it (narrow.h).
#include "activate.h"
#include "narrow.h"

namespace {

constexpr int64_t CACHED = 32 * 1024;  // floats of a chunk's wide pixels

// Pixels of a chunk; lines of its panels, an odd number of tiles: panels a multiple of 4 KiB apart would share few sets of
// the first cache.
int64_t pixels_of(const Linear& m) { return most(2, least(15, CACHED / m.e() / ROW_MULTIPLE)) * ROW_MULTIPLE; }
int64_t lines_of(int64_t pixels) { return pixels / ROW_MULTIPLE % 2 ? pixels : pixels + ROW_MULTIPLE; }

// g, the gradient at the activation's result, becomes that at its argument h + bias; its column sums are added.
using Deactivate = void (*)(float* g, const float* h, const float* bias, float* sums, int64_t rows);
template <class Unit, class Act>
void deactivate(float* g, const float* h, const float* bias, float* sums, int64_t rows) {
    for (int v = 0; v < PANEL; v += VL) {
        const vf b = load(bias + v);
        vf total = {};
        for (int64_t i = v; i < rows * PANEL; i += PANEL) {
            const vf value = Unit::rounded(Act::backward(load(g + i), load(h + i) + b));
            store(g + i, value);
            total += value;
        }
        store(sums + v, load(sums + v) + total);
    }
}

template <class T>
void forward(Linear m, const T* x, float* mean, float* var, float* x_mean, float* covariance, int64_t act, T* y,
             int64_t threads) {
    using Unit = UnitOf<T>;
    const Multiplied<Unit> w(m.w, m.E * m.C);
    m.w = w;
    moments(m, x, x_mean, covariance, threads);
    statistics(m, x_mean, covariance, mean, var, threads);
    const Scaled wide(m, x_mean, var);
    const Up<Unit> up(m, wide, x_mean);
    Activate activate_panel{};
    with_activation(act, [&](auto a) { activate_panel = activate<decltype(a)>; });
    const bool past_caches = m.E % PANEL == 0 && may_stream(y, m.pixels * m.E * (int64_t)sizeof(T));
    parallel(threads, [&](int64_t thread, int64_t of) {
        const Chunks chunks(share(m.pixels, thread, of), pixels_of(m));
        const int64_t space = lines_of(chunks.size), panel = space * PANEL;
        const Operand<Unit> in(space, panels(m.C), LEFT);
        Scratch h(space * m.e());
        const Rows<T> pixels = up.pixels(m, x);
        for (int64_t first = chunks.begin; first < chunks.end; first += chunks.size) {
            const int64_t rows = least(chunks.size, chunks.end - first);
            pack_operand(pixels, first, rows, space, in);
            const Term term{in.left(0), in.panel, up.weights, words<Unit>(m.C)};
            for (int64_t p = 0; p < panels(m.E); p += STEP) {
                const int64_t end = least(p + STEP, panels(m.E));
                product<Unit>(term, rows, p, end, m.e(), (float*)h, panel, up.edge());
                for (int64_t o = p; o < end; o++) activate_panel(h + o * panel, up.bias + o * PANEL, rows);
            }
            unpack_in_order(h, space, rows, m.E, nullptr, y + first * m.E, past_caches);
        }
        wait_for_streams();
    });
}

template <class T>
void backward(Linear m, const T* grad, const T* x, const float* var, const float* x_mean, const float* covariance,
              int64_t act, T* gx, float* gw, float* ggamma, float* gbeta, int64_t threads) {
    using Unit = UnitOf<T>;
    const Multiplied<Unit> w(m.w, m.E * m.C);
    m.w = w;
    const Scaled wide(m, x_mean, var);
    const Up<Unit> up(m, wide, x_mean);
    Deactivate deactivate_panel{};
    with_activation(act, [&](auto a) { deactivate_panel = deactivate<Unit, decltype(a)>; });
    // By thread: the sums of g (x - mean)' in blocks [E / 16][C / 16] of 16 x 16; those of g.
    const int64_t size = m.e() * m.c(), blocks = panels(m.C) * PANEL * PANEL;
    Scratch down(words<Unit>(m.E) * m.c()), of_w(threads * size), of_g(2 * threads * m.e());
    double* const totals = reinterpret_cast<double*>((float*)of_g);
    pack_panels<Unit>(wide.weights, 1, m.C, m.E, m.C, m.E, down, 0, 1);
    clear(of_w, threads * size);
    clear(of_g, 2 * threads * m.e());
    threads = parallel(threads, [&](int64_t thread, int64_t of) {
        const Chunks chunks(share(m.pixels, thread, of), pixels_of(m));
        const int64_t space = lines_of(chunks.size), panel = space * PANEL;
        const Operand<Unit> in(space, panels(m.C), BOTH), g(space, panels(m.E), BOTH);
        Scratch read(Unit::PAIRS ? space * m.e() : 0), h(STEP * panel), dx(space * m.c()), sums(m.e());
        float* const grads = g.made(0, read);
        const Rows<T> pixels = up.pixels(m, x);
        for (int64_t first = chunks.begin; first < chunks.end; first += chunks.size) {
            const int64_t rows = least(chunks.size, chunks.end - first);
            pack_operand(pixels, first, rows, space, in);
            pack_in_order(grad + first * m.E, m.E, rows, space, grads, nullptr);
            clear(sums, m.e());
            const Term to_h{in.left(0), in.panel, up.weights, words<Unit>(m.C)}, to_x{g.left(0), g.panel, down, words<Unit>(m.E)};
            for (int64_t p = 0; p < panels(m.E); p += STEP) {
                const int64_t end = least(p + STEP, panels(m.E));
                product<Unit>(to_h, rows, p, end, m.e(), h - p * panel, panel, up.edge());
                for (int64_t o = p; o < end; o++) {
                    float* at = grads + o * panel;
                    deactivate_panel(at, h + (o - p) * panel, up.bias + o * PANEL, sums + o * PANEL, rows);
                    panel_to<Unit>(at, rows, g.left(o), g.right(o));
                    outers<Unit>(g.right(o), in.right(0), in.panel, words<Unit>(rows), m.C, of_w + thread * size + o * blocks,
                                 PANEL * PANEL);
                }
            }
            for (int64_t e = 0; e < m.E; e++) totals[thread * m.e() + e] += sums[e];
            product<Unit>(to_x, rows, 0, panels(m.C), m.C, dx, panel, false);
            unpack_rows(dx, space, first, rows, m.C, gx);
        }
    });
    add_threads(of_w, size, threads);
    for (int64_t e = 0; e < m.E; e++)
        for (int64_t c = 0; c < m.C; c++)
            gw[e * m.C + c] = of_w[e / PANEL * blocks + (c / PANEL * PANEL + e % PANEL) * PANEL + c % PANEL];
    auto sum_of_g = [&](int64_t e) {
        double total = 0;
        for (int64_t t = 0; t < threads; t++) total += totals[t * m.e() + e];
        return total;
    };
    finish_norm(m, wide, x, Unit::PAIRS ? x_mean : nullptr, var, covariance, sum_of_g, gw, ggamma, gbeta, gx, threads);
}

}  // namespace

// Tensors are rows of pixels, of dtype 0 float32 or 1 bfloat16; weights and statistics are float32.
API void starshift_pointwise_norm_forward(int64_t dtype, int64_t pixels, int64_t C, int64_t E, const void* x,
                                          const float* w, const float* gamma, const float* beta, float eps, int64_t act,
                                          void* y, float* mean, float* var, float* x_mean, float* covariance,
                                          int64_t threads) {
    const Linear m{pixels, C, E, w, gamma, beta, eps};
    if (dtype == 0)
        forward(m, (const float*)x, mean, var, x_mean, covariance, act, (float*)y, threads);
    else
        forward(m, (const bf16*)x, mean, var, x_mean, covariance, act, (bf16*)y, threads);
}

API void starshift_pointwise_norm_backward(int64_t dtype, int64_t pixels, int64_t C, int64_t E, const void* grad,
                                           const void* x, const float* w, const float* gamma, const float* beta,
                                           float eps, int64_t act, const float* var, const float* x_mean,
                                           const float* covariance, void* gx, float* gw, float* ggamma, float* gbeta,
                                           int64_t threads) {
    const Linear m{pixels, C, E, w, gamma, beta, eps};
    if (dtype == 0)
        backward(m, (const float*)grad, (const float*)x, var, x_mean, covariance, act, (float*)gx, gw, ggamma, gbeta,
                 threads);
    else
        backward(m, (const bf16*)grad, (const bf16*)x, var, x_mean, covariance, act, (bf16*)gx, gw, ggamma, gbeta,
                 threads);
}
