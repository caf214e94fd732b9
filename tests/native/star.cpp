// SPDX-License-Identifier: Apache-2.0
// The star's C functions against plain loops: activations at three places, and what the fused block asks for.
#include <algorithm>

#include "calls.h"
#include "check.h"

extern "C" void starshift_star_mlp_backward(int64_t, int64_t, int64_t, int64_t, int64_t, SOURCE(grad), SOURCE(x), const float*,
                                            const float*, const float*, const float*, const float*, int64_t, int64_t,
                                            void*, float*, float*, float*, float*, float*, float*, const void*,
                                            const float*, double*, int64_t);

struct Activation {
    int64_t code;  // none, or SiLU: with a kink, rounding would move values across it
    double operator()(double z) const { return code ? z / (1 + std::exp(-z)) : z; }
    double slope(double z) const {
        const double s = 1 / (1 + std::exp(-z));
        return code ? s * (1 + z * (1 - s)) : 1;
    }
};

static void run(Random& r) {
    static const int64_t channels[] = {3, 8, 16, 17, 24, 33}, hidden[] = {5, 16, 40, 72, 150}, rows[] = {13, 40, 200, 450};
    const int64_t m = r.of(rows), c = r.of(channels), k = r.of(hidden), n = r.of(channels), dtype = r.below(3) == 0;
    const int64_t threads = r.between(1, 3), placement = r.below(3);
    const Activation act{r.maybe() ? 5 : 0};
    const bool biased = r.maybe(), through = r.maybe();  // through a norm: scale and shift of x
    char where[120];
    snprintf(where, sizeof where, "dtype %d, %d rows, %d to %d to %d, act %d, placement %d", (int)dtype, (int)m, (int)c, (int)k,
             (int)n, (int)act.code, (int)placement);
    const Tensor x(dtype, m * c, r), grad(dtype, m * n, r), partner(dtype, m * c, r), center(0, std::max(c, n), r);
    const Tensor scale(0, c, r), shift(0, c, r), w1(0, k * c, r), w2(0, k * c, r), wg(0, n * k, r), b1(0, k, r), b2(0, k, r), bg(0, n, r);
    std::vector<double> u(m * c), out(m * n), gx(m * c), gw1(k * c), gw2(k * c), gb1(k), gb2(k), gwg(n * k), gbg(n), sums(2 * n), sums_x(2 * c);
    for (int64_t i = 0; i < m * c; i++) u[i] = through ? x.values[i] * scale.values[i % c] + shift.values[i % c] : x.values[i];
    for (int64_t i = 0; i < m; i++) {
        for (int64_t o = 0; o < n; o++) {
            gbg[o] += grad.values[i * n + o];
            if (biased) out[i * n + o] = bg.values[o];
        }
        for (int64_t j = 0; j < k; j++) {
            double x1 = biased ? b1.values[j] : 0, x2 = biased ? b2.values[j] : 0, g = 0;
            for (int64_t q = 0; q < c; q++) {
                x1 += w1.values[j * c + q] * u[i * c + q];
                x2 += w2.values[j * c + q] * u[i * c + q];
            }
            const double h = placement == 0 ? act(x1) * x2 : placement == 1 ? act(x1) * act(x2) : act(x1 * x2);
            for (int64_t o = 0; o < n; o++) {
                out[i * n + o] += wg.values[o * k + j] * h;
                gwg[o * k + j] += grad.values[i * n + o] * h;
                g += grad.values[i * n + o] * wg.values[o * k + j];
            }
            double d1, d2;
            if (placement == 0) d1 = g * x2 * act.slope(x1), d2 = g * act(x1);
            if (placement == 1) d1 = g * act(x2) * act.slope(x1), d2 = g * act(x1) * act.slope(x2);
            if (placement == 2) d1 = g * act.slope(x1 * x2) * x2, d2 = g * act.slope(x1 * x2) * x1;
            gb1[j] += d1;
            gb2[j] += d2;
            for (int64_t q = 0; q < c; q++) {
                gw1[j * c + q] += d1 * u[i * c + q];
                gw2[j * c + q] += d2 * u[i * c + q];
                gx[i * c + q] += d1 * w1.values[j * c + q] + d2 * w2.values[j * c + q];
            }
        }
        for (int64_t o = 0; o < n; o++) {
            const double away = out[i * n + o] - center.values[o];
            sums[o] += away;
            sums[n + o] += away * away;
        }
        for (int64_t q = 0; q < c; q++) {
            sums_x[q] += gx[i * c + q];
            sums_x[c + q] += gx[i * c + q] * (partner.values[i * c + q] - center.values[q]);
        }
    }
    Tensor out_(dtype, m * n), gx_(dtype, m * c), gw1_(0, k * c), gw2_(0, k * c), gb1_(0, k), gb2_(0, k), gwg_(0, n * k), gbg_(0, n);
    std::vector<double> sums_(2 * n), sums_x_(2 * c);
    auto bias = [&](const Tensor& b) { return biased ? b.floats() : nullptr; };
    std::vector<float> packed(starshift_star_mlp_packed_floats(dtype, c, k, n));
    starshift_star_mlp_pack_for(dtype, c, k, n, w1.floats(), bias(b1), w2.floats(), bias(b2), wg.floats(), bias(bg), packed.data(), threads);
#define READ(t) (t).data, nullptr, through ? scale.floats() : nullptr, nullptr, through ? shift.floats() : nullptr, nullptr
    starshift_star_mlp_forward(dtype, m, c, k, n, READ(x), packed.data(), act.code, placement, out_.data, center.floats(),
                               sums_.data(), threads);
    starshift_star_mlp_backward(dtype, m, c, k, n, grad.data, nullptr, nullptr, nullptr, nullptr, nullptr, READ(x),
                                w1.floats(), bias(b1), w2.floats(), bias(b2), wg.floats(), act.code, placement, gx_.data,
                                gw1_.floats(), gb1_.floats(), gw2_.floats(), gb2_.floats(), gwg_.floats(), gbg_.floats(),
                                partner.data, center.floats(), sums_x_.data(), threads);
    check("output", out_, out, made_of(dtype), where);
    check("its sums", sums_, sums, made_of(dtype), where);
    check("input gradient", gx_, gx, made_of(dtype), where);
    check("its sums with the partner", sums_x_, sums_x, made_of(dtype), where);
    check("gradient of w1", gw1_, gw1, made_of(dtype), where);
    check("gradient of w2", gw2_, gw2, made_of(dtype), where);
    check("gradient of b1", gb1_, gb1, made_of(dtype), where);
    check("gradient of b2", gb2_, gb2, made_of(dtype), where);
    check("gradient of wg", gwg_, gwg, made_of(dtype), where);
    check("gradient of bg", gbg_, gbg, where);
}

int main(int, char** arguments) {
    Random random;
    for (int i = atoi(arguments[1]); i > 0; i--) run(random);
}
