// SPDX-License-Identifier: Apache-2.0
// The folded block's C function against the three kernels that it is made of, one behind the other.
#include "check.h"

#define SOURCE const void*, const void*, const float*, const float*, const float*, const float*
#define PLAIN(name) name, nullptr, nullptr, nullptr, nullptr, nullptr
extern "C" int64_t starshift_depthwise_packed(const int64_t*);
extern "C" void starshift_depthwise_pack(const int64_t*, const float*, const float*, float*);
extern "C" void starshift_depthwise_forward(int64_t, int64_t, const int64_t*, SOURCE, const float*, void*, const void*,
                                            const float*, const float*, double*);
extern "C" int64_t starshift_star_mlp_packed(int64_t, int64_t, int64_t);
extern "C" void starshift_star_mlp_pack(int64_t, int64_t, int64_t, const float*, const float*, const float*, const float*,
                                        const float*, const float*, float*, int64_t);
extern "C" void starshift_star_mlp_forward(int64_t, int64_t, int64_t, int64_t, int64_t, SOURCE, const float*, int64_t,
                                           int64_t, void*, const float*, double*, int64_t);
extern "C" void starshift_star_block_folded(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                                            const void*, const float*, const float*, const float*, int64_t, int64_t, void*);

static void run(Random& r) {
    static const int64_t channels[] = {3, 16, 17, 24, 40}, hidden[] = {5, 32, 72}, kernels[] = {1, 3, 5, 7};
    static const int64_t large[] = {1, 1, 1, 1, 1, 1, 1, 6};  // so that not all samples fit the cache at once
    const int64_t scale = r.of(large), n = r.between(1, 5), c = r.of(channels), h = scale * r.between(1, 9), w = scale * r.between(1, 9);
    const int64_t k = r.of(hidden), k1 = r.of(kernels), k2 = r.of(kernels), dtype = r.below(3) == 0, threads = r.between(1, 3);
    const int64_t act = 5 * r.below(2), placement = r.below(3);
    char where[120];
    snprintf(where, sizeof where, "dtype %d, x %d %d %d %d, %d hidden, kernels %d %d, act %d, placement %d", (int)dtype, (int)n,
             (int)c, (int)h, (int)w, (int)k, (int)k1, (int)k2, (int)act, (int)placement);
    const int64_t first[] = {n, c, h, w, h, w, k1, k1, 1, 1, k1 / 2, k1 / 2, 1, 1};
    const int64_t last[] = {n, c, h, w, h, w, k2, k2, 1, 1, k2 / 2, k2 / 2, 1, 1}, size = n * c * h * w;
    const Tensor x(dtype, size, r), wd(0, c * k1 * k1, r), bd(0, c, r), we(0, c * k2 * k2, r), be(0, c, r);
    const Tensor w1(0, k * c, r), b1(0, k, r), w2(0, k * c, r), b2(0, k, r), wg(0, c * k, r), bg(0, c, r);
    Tensor before(0, starshift_depthwise_packed(first)), star(0, starshift_star_mlp_packed(c, k, c));
    Tensor after(0, starshift_depthwise_packed(last)), y(dtype, size), z(dtype, size), expected(dtype, size), out(dtype, size);
    starshift_depthwise_pack(first, wd.floats(), bd.floats(), before.floats());
    starshift_depthwise_pack(last, we.floats(), be.floats(), after.floats());
    starshift_star_mlp_pack(c, k, c, w1.floats(), b1.floats(), w2.floats(), b2.floats(), wg.floats(), bg.floats(), star.floats(), 1);
    starshift_depthwise_forward(dtype, 1, first, PLAIN(x.data), before.floats(), y.data, nullptr, nullptr, nullptr, nullptr);
    starshift_star_mlp_forward(dtype, n * h * w, c, k, c, PLAIN(y.data), star.floats(), act, placement, z.data, nullptr, nullptr, 1);
    starshift_depthwise_forward(dtype, 1, last, PLAIN(z.data), after.floats(), expected.data, x.data, nullptr, nullptr, nullptr);
    starshift_star_block_folded(dtype, threads, n, c, h, w, k, k1, k2, x.data, before.floats(), star.floats(), after.floats(), act,
                                placement, out.data);
    expected.read();
    check("output", out, expected.values, where);
}

int main(int, char** arguments) {
    Random random;
    for (int i = atoi(arguments[1]) / 2; i > 0; i--) run(random);
}
