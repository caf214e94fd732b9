// SPDX-License-Identifier: Apache-2.0
// The conv-shift-conv's C functions against plain loops, which store everything and take the norm's two passes.
#include <algorithm>

#include "calls.h"
#include "check.h"

#define MODULE \
    int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, const void*, const float*, const float*, \
        const float*, const float*, const int64_t*, int64_t, float
extern "C" void starshift_csc_forward(MODULE, void*, float*, float*, float*, float*, int64_t);
extern "C" void starshift_csc_backward(MODULE, const void*, const float*, const float*, const float*, void*, float*,
                                       float*, float*, float*, int64_t);

extern "C" int64_t starshift_csc_packed_floats(int64_t, int64_t, int64_t);
extern "C" void starshift_csc_pack_for(int64_t, int64_t, int64_t, const float*, const float*, float*);
extern "C" void starshift_csc_folded(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, const void*,
                                     const float*, const float*, const float*, const int64_t*, int64_t, int64_t, void*);

static void run(Random& r) {
    static const int64_t wide[] = {1, 5, 16, 24, 33, 48, 70}, narrow[] = {1, 3, 8, 16, 17, 20}, strides[] = {1, 1, 2, 3};
    static const int64_t longest[] = {1, 3, 10, 40};
    const int64_t n = r.between(1, 3), c = r.of(narrow), h = r.between(1, 13), w = r.between(2, 19), e = r.of(wide);
    const int64_t k = r.of(narrow), stride = r.of(strides), dtype = r.below(3) == 0, threads = r.between(1, 3);
    const int64_t ho = (h + stride - 1) / stride, wo = (w + stride - 1) / stride, far = r.between(0, 3), most = r.of(longest);
    const float eps = 1e-3f;
    const Moves moves(r, e, far, most);
    char where[160];
    snprintf(where, sizeof where, "dtype %d, x %d %d %d %d, %d wide, %d out, stride %d, far %d", (int)dtype, (int)n, (int)c,
             (int)h, (int)w, (int)e, (int)k, (int)stride, (int)far);

    const int64_t pixels = n * h * w;
    const Tensor x(dtype, pixels * c, r), grad(dtype, n * ho * wo * k, r);
    Tensor w1(0, e * c, r);
    const Tensor w2(0, k * e, r);
    if (made_of(dtype)) w1.round();  // else rounding would move values across the kink
    const Tensor gamma(0, e, r), beta(0, e, r);
    std::vector<double> u(pixels * e), g(pixels * e), mean(e), var(e), z(grad.values.size()), gx(x.values.size());
    std::vector<double> gw1(e * c), gw2(k * e), ggamma(e), gbeta(e);
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t j = 0; j < e; j++)
            for (int64_t i = 0; i < c; i++) u[p * e + j] += w1.values[j * c + i] * x.values[p * c + i];
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t j = 0; j < e; j++) mean[j] += u[p * e + j] / pixels;
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t j = 0; j < e; j++) var[j] += (u[p * e + j] - mean[j]) * (u[p * e + j] - mean[j]) / pixels;
    auto normal = [&](int64_t p, int64_t j) { return (u[p * e + j] - mean[j]) / std::sqrt(var[j] + eps); };
    auto hidden = [&](int64_t p, int64_t j) { return gamma.values[j] * normal(p, j) + beta.values[j]; };
    for (int64_t i = 0; i < n; i++)
        for (int64_t y = 0; y < ho; y++)
            for (int64_t q = 0; q < wo; q++)
                for (int64_t j = 0; j < e; j++) {
                    const int64_t sy = y * stride + moves.dy[j], sx = q * stride + moves.dx[j], to = ((i * ho + y) * wo + q) * k;
                    if (sy < 0 || sy >= h || sx < 0 || sx >= w) continue;
                    const int64_t from = (i * h + sy) * w + sx;
                    const double value = std::max(0.0, hidden(from, j));
                    for (int64_t o = 0; o < k; o++) {
                        z[to + o] += w2.values[o * e + j] * value;
                        gw2[o * e + j] += grad.values[to + o] * value;
                        if (value > 0) g[from * e + j] += grad.values[to + o] * w2.values[o * e + j];
                    }
                }
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t j = 0; j < e; j++) {
            gbeta[j] += g[p * e + j];
            ggamma[j] += g[p * e + j] * normal(p, j);
        }
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t j = 0; j < e; j++) {
            const double gu = gamma.values[j] / std::sqrt(var[j] + eps) *
                              (g[p * e + j] - gbeta[j] / pixels - normal(p, j) * ggamma[j] / pixels);
            for (int64_t i = 0; i < c; i++) {
                gw1[j * c + i] += gu * x.values[p * c + i];
                gx[p * c + i] += gu * w1.values[j * c + i];
            }
        }

    Tensor z_(dtype, z.size()), gx_(dtype, gx.size()), mean_(0, e), var_(0, e), x_mean(0, c), covariance(0, c * c);
    Tensor gw1_(0, e * c), gw2_(0, k * e), ggamma_(0, e), gbeta_(0, e);
#define THE_MODULE \
    dtype, n, c, h, w, e, k, stride, x.data, w1.floats(), gamma.floats(), beta.floats(), w2.floats(), moves.offsets.data(), \
        moves.runs(), eps
    starshift_csc_forward(THE_MODULE, z_.data, mean_.floats(), var_.floats(), x_mean.floats(), covariance.floats(), threads);
    starshift_csc_backward(THE_MODULE, grad.data, var_.floats(), x_mean.floats(), covariance.floats(), gx_.data,
                           gw1_.floats(), ggamma_.floats(), gbeta_.floats(), gw2_.floats(), threads);
    check_means(mean_, mean, var, where);
    check("variance", var_, var, where);
    check("output", z_, z, made_of(dtype), where);
    check("gradient of w2", gw2_, gw2, made_of(dtype), where);
    check("gradient of beta", gbeta_, gbeta, made_of(dtype), where);
    // Of few pixels or channels the norm takes nearly all away, and rounding is a share of what it took.
    if (pixels < 32 || c < 4) return;
    check("gradient of gamma", ggamma_, ggamma, made_of(dtype), where);
    check("gradient of w1", gw1_, gw1, made_of(dtype), where);
    check("input gradient", gx_, gx, made_of(dtype), where);
}

// In inference: both convolutions with biases, both ReLU, the shortcut.
static void run_folded(Random& r) {
    static const int64_t channels[] = {1, 5, 16, 24, 40}, wide[] = {3, 16, 33, 150, 270}, strides[] = {1, 1, 2, 3};
    static const int64_t large[] = {1, 1, 1, 1, 1, 1, 1, 6};  // so that not all samples fit the cache at once
    const int64_t scale = r.of(large), n = r.between(1, 5), c = r.of(channels), h = scale * r.between(1, 9), w = scale * r.between(1, 9);
    const int64_t e = r.of(wide), stride = r.of(strides), dtype = r.below(3) == 0, threads = r.between(1, 3), after_sum = r.below(2);
    const bool projected = stride > 1 || r.maybe();
    const int64_t k = projected ? r.of(channels) : c, ho = (h + stride - 1) / stride, wo = (w + stride - 1) / stride;
    const Moves moves(r, e, 2, 20);
    char where[160];
    snprintf(where, sizeof where, "folded, dtype %d, x %d %d %d %d, %d wide, %d out, stride %d, projected %d, after the sum %d",
             (int)dtype, (int)n, (int)c, (int)h, (int)w, (int)e, (int)k, (int)stride, (int)projected, (int)after_sum);
    const Tensor x(dtype, n * h * w * c, r), w1(0, e * c, r), b1(0, e, r), w2(0, k * e, r), b2(0, k, r), ws(0, k * c, r), bs(0, k, r);
    std::vector<double> middle(n * h * w * e), out(n * ho * wo * k);
    for (int64_t p = 0; p < n * h * w; p++)
        for (int64_t j = 0; j < e; j++) {
            double sum = b1.values[j];
            for (int64_t i = 0; i < c; i++) sum += w1.values[j * c + i] * x.values[p * c + i];
            middle[p * e + j] = std::max(0.0, sum);
        }
    for (int64_t i = 0; i < n; i++)
        for (int64_t y = 0; y < ho; y++)
            for (int64_t q = 0; q < wo; q++)
                for (int64_t o = 0; o < k; o++) {
                    double branch = b2.values[o], other = bs.values[o];
                    for (int64_t j = 0; j < e; j++) {
                        const int64_t sy = y * stride + moves.dy[j], sx = q * stride + moves.dx[j];
                        if (sy >= 0 && sy < h && sx >= 0 && sx < w)
                            branch += w2.values[o * e + j] * middle[((i * h + sy) * w + sx) * e + j];
                    }
                    const double* from = x.values.data() + ((i * h + y * stride) * w + q * stride) * c;
                    for (int64_t j = 0; j < c; j++) other += ws.values[o * c + j] * from[j];
                    if (!projected) other = from[o];
                    out[((i * ho + y) * wo + q) * k + o] =
                        after_sum ? std::max(0.0, branch + other) : std::max(0.0, branch) + other;
                }
    const int64_t first[] = {1, c, 1, 1, e, 1, 1, 1, 1, 1, 1, 0, 0}, side[] = {1, c, 1, 1, k, 1, 1, 1, 1, 1, 1, 0, 0};
    Tensor p1(0, starshift_conv_packed_floats(dtype, first)), p2(0, starshift_csc_packed_floats(dtype, e, k)), ps(0, starshift_conv_packed_floats(dtype, side)), out_(dtype, out.size());
    starshift_conv_pack_for(dtype, first, w1.floats(), b1.floats(), p1.floats());
    starshift_conv_pack_for(dtype, side, ws.floats(), bs.floats(), ps.floats());
    starshift_csc_pack_for(dtype, e, k, w2.floats(), b2.floats(), p2.floats());
    starshift_csc_folded(dtype, threads, n, c, h, w, e, k, stride, x.data, p1.floats(), p2.floats(), projected ? ps.floats() : nullptr,
                         moves.offsets.data(), moves.runs(), after_sum, out_.data);
    check("output", out_, out, where);
}

int main(int, char** arguments) {
    Random random;
    for (int i = atoi(arguments[1]); i > 0; i--) run(random);
    for (int i = atoi(arguments[1]) / 2; i > 0; i--) run_folded(random);
}
