// SPDX-License-Identifier: Apache-2.0
// The C functions of the shift, alone and with the 1x1 convolution after it, against plain loops.
#include <algorithm>

#include "calls.h"
#include "check.h"

extern "C" void starshift_shift_conv2d_forward(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                                               const void*, const float*, const float*, const int64_t*, int64_t, void*,
                                               int64_t);
extern "C" void starshift_shift_conv2d_backward(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                                                const void*, const void*, const float*, const int64_t*, int64_t, void*,
                                                float*, float*, int64_t);

static void run(Random& r) {
    static const int64_t channels[] = {1, 2, 5, 8, 16, 17, 33, 40, 96, 270}, strides[] = {1, 1, 1, 2, 2, 3};
    static const int64_t longest[] = {1, 1, 3, 10, 40, 300};
    const int64_t n = r.below(5), c = r.of(channels), h = r.between(1, 14), w = r.between(1, 20), k = r.between(1, 36);
    const int64_t stride = r.of(strides), dtype = r.below(3) == 0, threads = r.between(1, 3), far = r.between(0, 4);
    const int64_t ho = (h + stride - 1) / stride, wo = (w + stride - 1) / stride, most = r.of(longest);
    const Moves moves(r, c, far, most);
    const std::vector<int64_t>&offsets = moves.offsets, &dy = moves.dy, &dx = moves.dx;
    const int64_t runs = moves.runs();
    char where[160];
    snprintf(where, sizeof where, "dtype %d, x %d %d %d %d, %d runs to %d, %d outputs, stride %d", (int)dtype, (int)n,
             (int)c, (int)h, (int)w, (int)runs, (int)far, (int)k, (int)stride);

    const Tensor x(dtype, n * c * h * w, r), grad(dtype, n * k * ho * wo, r), weight(0, k * c, r), bias(0, k, r);
    const bool biased = r.maybe();
    std::vector<double> last(x.values.size()), planes(last), out(grad.values.size()), gx(last), gw(k * c), gb(k);
    for (int64_t i = 0; i < n; i++)
        for (int64_t y = 0; y < h; y++)
            for (int64_t p = 0; p < w; p++)
                for (int64_t j = 0; j < c; j++) {
                    const int64_t sy = y + dy[j], sx = p + dx[j], at = ((i * h + y) * w + p) * c + j;
                    const bool inside = sy >= 0 && sy < h && sx >= 0 && sx < w;
                    const int64_t from = ((i * h + sy) * w + sx) * c + j;
                    last[at] = inside ? x.values[from] : 0;
                    planes[((i * c + j) * h + y) * w + p] = inside ? x.values[((i * c + j) * h + sy) * w + sx] : 0;
                    if (y % stride || p % stride) continue;
                    const int64_t to = ((i * ho + y / stride) * wo + p / stride) * k;
                    for (int64_t o = 0; o < k; o++) {
                        out[to + o] += weight.values[o * c + j] * last[at] + (biased && !j ? bias.values[o] : 0);
                        gw[o * c + j] += grad.values[to + o] * last[at];
                        if (inside) gx[from] += grad.values[to + o] * weight.values[o * c + j];
                        if (!j) gb[o] += grad.values[to + o];
                    }
                }
    Tensor to_last(dtype, last.size()), to_planes(dtype, last.size()), to(dtype, out.size()), to_x(dtype, gx.size());
    Tensor to_w(0, gw.size()), to_b(0, k);
    const int64_t* runs_at = offsets.data();
    starshift_shift2d(dtype ? 2 : 4, 1, n, c, h, w, x.data, runs_at, runs, to_last.data, threads);
    starshift_shift2d(dtype ? 2 : 4, 0, n, c, h, w, x.data, runs_at, runs, to_planes.data, threads);
    starshift_shift_conv2d_forward(dtype, n, c, h, w, k, stride, x.data, weight.floats(),
                                   biased ? bias.floats() : nullptr, runs_at, runs, to.data, threads);
    starshift_shift_conv2d_backward(dtype, n, c, h, w, k, stride, grad.data, x.data, weight.floats(), runs_at, runs,
                                    to_x.data, to_w.floats(), to_b.floats(), threads);
    check("shift, channels last", to_last, last, where);
    check("shift, planes", to_planes, planes, where);
    check("output", to, out, where);
    check("input gradient", to_x, gx, where);
    check("weight gradient", to_w, gw, where);
    check("bias gradient", to_b, gb, where);
}

int main(int, char** arguments) {
    Random random;
    for (int i = atoi(arguments[1]); i > 0; i--) run(random);
}
