// SPDX-License-Identifier: Apache-2.0
// The 1x1 convolution with norm and activation against plain loops, which store everything and take the norm's two passes.
#include <algorithm>

#include "check.h"

extern "C" void starshift_pointwise_norm_forward(int64_t, int64_t, int64_t, int64_t, const void*, const float*, const float*,
                                                 const float*, float, int64_t, void*, float*, float*, float*, float*, int64_t);
extern "C" void starshift_pointwise_norm_backward(int64_t, int64_t, int64_t, int64_t, const void*, const void*, const float*,
                                                  const float*, const float*, float, int64_t, const float*, const float*,
                                                  const float*, void*, float*, float*, float*, int64_t);

static void run(Random& r) {
    static const int64_t narrow[] = {1, 3, 8, 16, 17, 40}, wide[] = {5, 7, 16, 24, 33, 70, 150}, many[] = {2, 13, 40, 200, 450};
    const int64_t pixels = r.of(many), c = r.of(narrow), e = r.of(wide), dtype = r.below(3) == 0, threads = r.between(1, 3);
    const int64_t act = 5 * r.below(2);  // none, or SiLU: with a kink, rounding would move values across it
    const float eps = 1e-3f;
    char where[120];
    snprintf(where, sizeof where, "dtype %d, %d pixels, %d to %d, act %d", (int)dtype, (int)pixels, (int)c, (int)e, (int)act);

    const Tensor x(dtype, pixels * c, r), grad(dtype, pixels * e, r);
    Tensor w(0, e * c, r);
    const Tensor gamma(0, e, r), beta(0, e, r);
    if (made_of(dtype)) w.round();  // as the kernel does first: the statistics are of what is multiplied
    std::vector<double> u(pixels * e), g(pixels * e), y(pixels * e), mean(e), var(e), gx(pixels * c), gw(e * c), ggamma(e), gbeta(e);
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t j = 0; j < e; j++)
            for (int64_t i = 0; i < c; i++) u[p * e + j] += w.values[j * c + i] * x.values[p * c + i];
    for (int64_t i = 0; i < pixels * e; i++) mean[i % e] += u[i] / pixels;
    for (int64_t i = 0; i < pixels * e; i++) var[i % e] += (u[i] - mean[i % e]) * (u[i] - mean[i % e]) / pixels;
    auto normal = [&](int64_t i) { return (u[i] - mean[i % e]) / std::sqrt(var[i % e] + eps); };
    for (int64_t i = 0; i < pixels * e; i++) {
        const double h = gamma.values[i % e] * normal(i) + beta.values[i % e], s = 1 / (1 + std::exp(-h));
        y[i] = act ? h * s : h;
        g[i] = grad.values[i] * (act ? s * (1 + h * (1 - s)) : 1);
        gbeta[i % e] += g[i];
        ggamma[i % e] += g[i] * normal(i);
    }
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t j = 0; j < e; j++) {
            const double gu = gamma.values[j] / std::sqrt(var[j] + eps) *
                              (g[p * e + j] - gbeta[j] / pixels - normal(p * e + j) * ggamma[j] / pixels);
            for (int64_t i = 0; i < c; i++) {
                gw[j * c + i] += gu * x.values[p * c + i];
                gx[p * c + i] += gu * w.values[j * c + i];
            }
        }

    Tensor y_(dtype, y.size()), gx_(dtype, gx.size()), mean_(0, e), var_(0, e), x_mean(0, c), covariance(0, c * c);
    Tensor gw_(0, e * c), ggamma_(0, e), gbeta_(0, e);
    starshift_pointwise_norm_forward(dtype, pixels, c, e, x.data, w.floats(), gamma.floats(), beta.floats(), eps, act, y_.data,
                                     mean_.floats(), var_.floats(), x_mean.floats(), covariance.floats(), threads);
    starshift_pointwise_norm_backward(dtype, pixels, c, e, grad.data, x.data, w.floats(), gamma.floats(), beta.floats(), eps, act,
                                      var_.floats(), x_mean.floats(), covariance.floats(), gx_.data, gw_.floats(), ggamma_.floats(),
                                      gbeta_.floats(), threads);
    check_means(mean_, mean, var, where);
    check("variance", var_, var, where);
    check("output", y_, y, made_of(dtype), where);
    check("gradient of beta", gbeta_, gbeta, made_of(dtype), where);
    // Of few pixels or channels the norm takes nearly all away, and rounding is a share of what it took.
    if (pixels < 32 || c < 4) return;
    check("gradient of gamma", ggamma_, ggamma, made_of(dtype), where);
    check("gradient of w", gw_, gw, made_of(dtype), where);
    check("input gradient", gx_, gx, made_of(dtype), where);
}

int main(int, char** arguments) {
    Random random;
    for (int i = atoi(arguments[1]); i > 0; i--) run(random);
}
