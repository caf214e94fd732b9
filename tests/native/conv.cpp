// SPDX-License-Identifier: Apache-2.0
// The dense convolution's C functions against plain loops, over random shapes and geometries.
#include <algorithm>

#include "calls.h"
#include "check.h"

static void run(Random& r) {
    static const int64_t channels[] = {1, 3, 8, 16, 17, 24, 33}, outputs[] = {1, 5, 16, 24, 40, 65}, kernels[] = {1, 2, 3, 3, 4, 5};
    const int64_t n = r.between(1, 3), c = r.of(channels), h = r.between(1, 14), w = r.between(1, 30), o = r.of(outputs);
    const int64_t kh = r.of(kernels), kw = r.of(kernels), sy = r.between(1, 3), sx = r.between(1, 3);
    const int64_t py = std::max(r.between(0, 2), (kh - h + 1) / 2), px = std::max(r.between(0, 2), (kw - w + 1) / 2);
    const int64_t ho = (h + 2 * py - kh) / sy + 1, wo = (w + 2 * px - kw) / sx + 1;
    const int64_t dtype = r.below(3) == 0, threads = r.between(1, 3), act = r.maybe();  // none or ReLU
    const bool biased = r.maybe();
    char where[160];
    snprintf(where, sizeof where, "dtype %d, x %d %d %d %d, %d out, kernel %d %d, stride %d %d, padding %d %d", (int)dtype, (int)n,
             (int)c, (int)h, (int)w, (int)o, (int)kh, (int)kw, (int)sy, (int)sx, (int)py, (int)px);
    const Tensor x(dtype, n * h * w * c, r), weight(0, o * c * kh * kw, r), bias(0, o, r);
    std::vector<double> expected(n * ho * wo * o);
    for (int64_t i = 0; i < (int64_t)expected.size(); i++) {
        const int64_t k = i % o, ox = i / o % wo, oy = i / o / wo % ho, s = i / o / wo / ho;
        double v = biased ? bias.values[k] : 0;
        for (int64_t a = 0; a < kh; a++)
            for (int64_t b = 0; b < kw; b++) {
                const int64_t y = oy * sy + a - py, z = ox * sx + b - px;
                if (y < 0 || y >= h || z < 0 || z >= w) continue;
                for (int64_t j = 0; j < c; j++)
                    v += x.values[((s * h + y) * w + z) * c + j] * weight.values[((k * c + j) * kh + a) * kw + b];
            }
        expected[i] = act ? std::max(0.0, v) : v;
    }
    const int64_t sizes[] = {n, c, h, w, o, ho, wo, kh, kw, sy, sx, py, px};
    Tensor packed(0, starshift_conv_packed_floats(dtype, sizes)), out(dtype, expected.size());
    starshift_conv_pack_for(dtype, sizes, weight.floats(), biased ? bias.floats() : nullptr, packed.floats());
    starshift_conv_forward(dtype, threads, sizes, x.data, packed.floats(), act, out.data);
    check("output", out, expected, where);
}

int main(int, char** arguments) {
    Random random;
    for (int i = atoi(arguments[1]); i > 0; i--) run(random);
}
