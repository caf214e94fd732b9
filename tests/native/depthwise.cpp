// SPDX-License-Identifier: Apache-2.0
// The depthwise convolution's C functions against plain loops, over random shapes, geometries and fused arguments.
#include "calls.h"
#include "check.h"

extern "C" void starshift_depthwise_backward(int64_t, int64_t, const int64_t*, SOURCE(grad), SOURCE(x), const float*, void*,
                                             const void*, const float*, const void*, const float*, double*, float*,
                                             float*);

struct Shape {
    int64_t n, c, h, w;
    int64_t size() const { return n * c * h * w; }
    int64_t at(int64_t i, int64_t k, int64_t y, int64_t x) const { return ((i * h + y) * w + x) * c + k; }
};

// A tensor with the arithmetic of a Source, each part of it there or not.
struct Read {
    Tensor tensor, other, scale, other_scale, shift, sample;
    bool has_other, has_scale, has_shift, has_sample;
    std::vector<double> values;

    Read(int64_t dtype, const Shape& s, bool plain, Random& r)
        : tensor(dtype, s.size(), r), other(dtype, s.size(), r), scale(0, s.c, r), other_scale(0, s.c, r),
          shift(0, s.c, r), sample(0, s.n, r), has_other(!plain && r.maybe()), has_scale(!plain && r.maybe()),
          has_shift(!plain && r.maybe()), has_sample(!plain && r.maybe()), values(s.size()) {
        for (int64_t i = 0; i < s.size(); i++) {
            const int64_t c = i % s.c, n = i / (s.c * s.h * s.w);
            double v = (has_scale ? scale.values[c] : 1) * tensor.values[i];
            if (has_other) v += (has_scale ? other_scale.values[c] : 1) * other.values[i];
            if (has_shift) v += shift.values[c];
            values[i] = v * (has_sample ? sample.values[n] : 1);
        }
    }
    // Sums of products of what is read are as exact as those of floats, unless arithmetic is rounded to pairs first.
    int64_t rounded() const { return has_other || has_scale || has_shift || has_sample ? made_of(tensor.dtype) : 0; }
    const void* others() const { return has_other ? other.data : nullptr; }
    const float* scales() const { return has_scale ? scale.floats() : nullptr; }
    const float* other_scales() const { return has_other && has_scale ? other_scale.floats() : nullptr; }
    const float* shifts() const { return has_shift ? shift.floats() : nullptr; }
    const float* samples() const { return has_sample ? sample.floats() : nullptr; }
};
#define ARGUMENTS(r) (r).tensor.data, (r).others(), (r).scales(), (r).other_scales(), (r).shifts(), (r).samples()

static void run(Random& r, bool large) {
    static const int64_t kernels[] = {3, 3, 5, 7, 7, 1, 2, 4, 9}, channels[] = {1, 3, 8, 16, 17, 20, 24, 35, 48};
    static const int64_t strides[] = {1, 1, 1, 2, 2, 3}, dilations[] = {1, 1, 1, 1, 2, 3}, batches[] = {0, 1, 1, 2, 3};
    int64_t ky = r.of(kernels), kx = r.below(4) ? ky : r.of(kernels), sy = r.of(strides), sx = r.below(4) ? sy : r.of(strides);
    int64_t dy = r.of(dilations), dx = r.below(4) ? dy : r.of(dilations), py = r.below(3) ? ky / 2 : r.below(9);
    int64_t px = r.below(3) ? kx / 2 : r.below(9), dtype = r.below(3) == 0;
    const Shape in = {r.of(batches), r.of(channels), r.between(1, large ? 70 : 16), r.between(1, large ? 70 : 16)};
    const Shape out = {in.n, in.c, (in.h + 2 * py - dy * (ky - 1) - 1) / sy + 1, (in.w + 2 * px - dx * (kx - 1) - 1) / sx + 1};
    if (in.h + 2 * py < dy * (ky - 1) + 1 || in.w + 2 * px < dx * (kx - 1) + 1) return;
    const int64_t sizes[] = {in.n, in.c, in.h, in.w, out.h, out.w, ky, kx, sy, sx, py, px, dy, dx};
    char where[200];
    snprintf(where, sizeof where, "dtype %d, x %d %d %d %d, kernel %d %d, stride %d %d, padding %d %d, dilation %d %d",
             (int)dtype, (int)in.n, (int)in.c, (int)in.h, (int)in.w, (int)ky, (int)kx, (int)sy, (int)sx, (int)py,
             (int)px, (int)dy, (int)dx);

    const bool plain = r.below(3) > 0, plain_out = r.below(3) > 0, summed = r.maybe();
    const Read x(dtype, in, plain, r), grad(dtype, out, r.below(3) > 0, r);
    Tensor weight(0, in.c * ky * kx, r);
    if (made_of(dtype)) weight.round();
    const Tensor bias(0, in.c, r), sample(0, in.n, r), center(0, in.c, r);
    const Tensor residual(dtype, out.size(), r), residual_in(dtype, in.size(), r), partner(dtype, in.size(), r);
    std::vector<double> conv(out.size()), gx(in.size()), gw(in.c * ky * kx), gb(in.c), sums(2 * in.c), sums_in(2 * in.c);
    for (int64_t n = 0; n < in.n; n++)
        for (int64_t c = 0; c < in.c; c++)
            for (int64_t y = 0; y < out.h; y++)
                for (int64_t o = 0; o < out.w; o++) {
                    const int64_t to = out.at(n, c, y, o);
                    double v = bias.values[c];
                    for (int64_t i = 0; i < ky; i++)
                        for (int64_t j = 0; j < kx; j++) {
                            const int64_t row = y * sy - py + i * dy, column = o * sx - px + j * dx, k = (c * ky + i) * kx + j;
                            if (row < 0 || row >= in.h || column < 0 || column >= in.w) continue;
                            const int64_t from = in.at(n, c, row, column);
                            v += weight.values[k] * x.values[from];
                            gx[from] += weight.values[k] * grad.values[to];
                            gw[k] += grad.values[to] * x.values[from];
                        }
                    gb[c] += grad.values[to];
                    sums[c] += v - center.values[c];
                    sums[in.c + c] += (v - center.values[c]) * (v - center.values[c]);
                    conv[to] = plain_out ? v : residual.values[to] + sample.values[n] * v;
                }
    for (int64_t i = 0; i < in.size(); i++) {
        const int64_t c = i % in.c, n = i / (in.c * in.h * in.w);
        if (!plain_out) gx[i] = residual_in.values[i] + sample.values[n] * gx[i];
        sums_in[c] += gx[i];
        sums_in[in.c + c] += gx[i] * (partner.values[i] - center.values[c]);
    }

    Tensor out_(dtype, out.size()), gx_(dtype, in.size()), gw_(0, in.c * ky * kx), gb_(0, in.c);
    std::vector<double> sums_(2 * in.c), sums_in_(2 * in.c);
    const float* scale = plain_out ? nullptr : sample.floats();
    const int64_t threads = 2;
    std::vector<float> packed(starshift_depthwise_packed_floats(dtype, sizes));
    starshift_depthwise_pack_for(dtype, sizes, weight.floats(), bias.floats(), packed.data());
    starshift_depthwise_forward(dtype, threads, sizes, ARGUMENTS(x), packed.data(), out_.data,
                                plain_out ? nullptr : residual.data, scale, center.floats(), summed ? sums_.data() : nullptr);
    check("forward", out_, conv, where);
    if (summed) check("sums", sums_, sums, x.rounded(), where);
    const int64_t which = r.below(3);  // both gradients, or one
    starshift_depthwise_backward(dtype, threads, sizes, ARGUMENTS(grad), ARGUMENTS(x), weight.floats(),
                                 which == 1 ? nullptr : gx_.data, plain_out ? nullptr : residual_in.data, scale,
                                 summed ? partner.data : nullptr, center.floats(),
                                 summed && which != 1 ? sums_in_.data() : nullptr, which == 2 ? nullptr : gw_.floats(),
                                 which == 2 ? nullptr : gb_.floats());
    if (which != 1) check("input gradient", gx_, gx, where);
    if (which != 1 && summed) check("input gradient's sums", sums_in_, sums_in, grad.rounded(), where);
    if (which != 2) check("weight gradient", gw_, gw, grad.rounded() || x.rounded(), where);
    if (which != 2) check("bias gradient", gb_, gb, grad.rounded(), where);
}

int main(int, char** arguments) {
    Random random;
    for (int i = 0; i < atoi(arguments[1]); i++) run(random, i % 16 == 0);
    printf("ok\n");
}
