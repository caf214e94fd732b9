// SPDX-License-Identifier: Apache-2.0
// The C functions of one pointwise convolution, and of two with an activation between, against plain loops.
#include "check.h"

extern "C" void starshift_pointwise_conv2d_forward(int64_t, int64_t, int64_t, int64_t, const void*, const float*,
                                                   const float*, void*, int64_t);
extern "C" void starshift_pointwise_conv2d_backward(int64_t, int64_t, int64_t, int64_t, const void*, const void*,
                                                    const float*, void*, float*, float*, int64_t);
extern "C" void starshift_pointwise_mlp_forward(int64_t, int64_t, int64_t, int64_t, int64_t, const void*, const float*,
                                                const float*, const float*, const float*, int64_t, void*, int64_t);
extern "C" void starshift_pointwise_mlp_backward(int64_t, int64_t, int64_t, int64_t, int64_t, const void*, const void*,
                                                 const float*, const float*, const float*, int64_t, void*, float*,
                                                 float*, float*, float*, int64_t);

static void run(Random& r) {
    static const int64_t channels[] = {3, 8, 16, 17, 24, 33}, hidden[] = {5, 16, 40, 72, 150}, rows[] = {13, 40, 200, 450};
    const int64_t m = r.of(rows), c = r.of(channels), k = r.of(hidden), n = r.of(channels), dtype = r.below(3) == 0;
    const int64_t threads = r.between(1, 3), act = r.maybe() ? 5 : 0;  // SiLU, or none
    const bool biased = r.maybe();
    char where[120];
    snprintf(where, sizeof where, "dtype %d, %d rows, %d to %d to %d, act %d", (int)dtype, (int)m, (int)c, (int)k, (int)n, (int)act);
    const Tensor x(dtype, m * c, r), grad(dtype, m * n, r), wide_grad(dtype, m * k, r);
    const Tensor w1(0, k * c, r), b1(0, k, r), w2(0, n * k, r), b2(0, n, r);
    std::vector<double> wide(m * k), out(m * n), conv_gx(m * c), conv_gw(k * c), conv_gb(k);
    std::vector<double> gx(m * c), gw1(k * c), gb1(k), gw2(n * k), gb2(n);
    for (int64_t i = 0; i < m; i++)
        for (int64_t o = 0; o < n; o++) {
            gb2[o] += grad.values[i * n + o];
            if (biased) out[i * n + o] = b2.values[o];
        }
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < k; j++) {
            double z = biased ? b1.values[j] : 0, g = 0;
            for (int64_t q = 0; q < c; q++) z += w1.values[j * c + q] * x.values[i * c + q];
            wide[i * k + j] = z;
            const double s = 1 / (1 + std::exp(-z)), a = act ? z * s : z;
            for (int64_t o = 0; o < n; o++) {
                out[i * n + o] += w2.values[o * k + j] * a;
                gw2[o * k + j] += grad.values[i * n + o] * a;
                g += grad.values[i * n + o] * w2.values[o * k + j];
            }
            if (act) g *= s * (1 + z * (1 - s));
            gb1[j] += g;
            const double direct = wide_grad.values[i * k + j];
            conv_gb[j] += direct;
            for (int64_t q = 0; q < c; q++) {
                gw1[j * c + q] += g * x.values[i * c + q];
                gx[i * c + q] += g * w1.values[j * c + q];
                conv_gw[j * c + q] += direct * x.values[i * c + q];
                conv_gx[i * c + q] += direct * w1.values[j * c + q];
            }
        }
    Tensor wide_(dtype, m * k), out_(dtype, m * n), gx_(dtype, m * c), conv_gx_(dtype, m * c), gw1_(0, k * c), gb1_(0, k);
    Tensor gw2_(0, n * k), gb2_(0, n), conv_gw_(0, k * c), conv_gb_(0, k);
    const float *bias1 = biased ? b1.floats() : nullptr, *bias2 = biased ? b2.floats() : nullptr;
    starshift_pointwise_conv2d_forward(dtype, m, c, k, x.data, w1.floats(), bias1, wide_.data, threads);
    starshift_pointwise_conv2d_backward(dtype, m, c, k, wide_grad.data, x.data, w1.floats(), conv_gx_.data,
                                        conv_gw_.floats(), conv_gb_.floats(), threads);
    starshift_pointwise_mlp_forward(dtype, m, c, k, n, x.data, w1.floats(), bias1, w2.floats(), bias2, act, out_.data, threads);
    starshift_pointwise_mlp_backward(dtype, m, c, k, n, grad.data, x.data, w1.floats(), bias1, w2.floats(), act, gx_.data,
                                     gw1_.floats(), gb1_.floats(), gw2_.floats(), gb2_.floats(), threads);
    check("convolution", wide_, wide, where);
    check("its input gradient", conv_gx_, conv_gx, where);
    check("its weight gradient", conv_gw_, conv_gw, where);
    check("its bias gradient", conv_gb_, conv_gb, where);
    check("pair", out_, out, made_of(dtype), where);
    check("input gradient", gx_, gx, made_of(dtype), where);
    check("first weight's gradient", gw1_, gw1, made_of(dtype), where);
    check("first bias's gradient", gb1_, gb1, made_of(dtype), where);
    check("second weight's gradient", gw2_, gw2, made_of(dtype), where);
    check("second bias's gradient", gb2_, gb2, where);
}

int main(int, char** arguments) {
    Random random;
    for (int i = atoi(arguments[1]); i > 0; i--) run(random);
}
