// SPDX-License-Identifier: Apache-2.0
// The folded block's C function against the kernels that it is made of, one behind the other.
#include "calls.h"
#include "check.h"

#define SPACE int64_t, const float*, const int64_t*, int64_t
extern "C" void starshift_star_block_folded(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, const void*, SPACE,
                                            const float*, int64_t, int64_t, SPACE, void*);

// A depthwise convolution, a shift, or nothing, of n c h w.
struct Space {
    static constexpr int64_t KERNELS[] = {1, 3, 5, 7};
    const int64_t n, c, h, w, kind, k;
    const int64_t sizes[14] = {n, c, h, w, h, w, k, k, 1, 1, k / 2, k / 2, 1, 1};
    std::vector<int64_t> offsets;
    Tensor packed;

    Space(Random& r, int64_t dtype, int64_t n, int64_t c, int64_t h, int64_t w)
        : n(n), c(c), h(h), w(w), kind(r.below(3)), k(r.of(KERNELS)), packed(0, starshift_depthwise_packed_floats(dtype, sizes)) {
        const Tensor weight(0, c * k * k, r), bias(0, c, r);
        starshift_depthwise_pack_for(dtype, sizes, weight.floats(), bias.floats(), packed.floats());
        if (kind == 1) offsets = Moves(r, c, 2, c).offsets;
    }
    // `from` moved, and the residual added where there is one.
    void apply(const Tensor& from, const Tensor* residual, Tensor& to) const {
        if (kind == 0)
            return starshift_depthwise_forward(from.dtype, 1, sizes, PLAIN(from.data), packed.floats(), to.data,
                                               residual ? residual->data : nullptr, nullptr, nullptr, nullptr);
        if (kind == 1)
            starshift_shift2d(from.width(), 1, n, c, h, w, from.data, offsets.data(), runs(), to.data, 1);
        else
            memcpy(to.data, from.data, from.values.size() * from.width());
        if (!residual) return;
        to.read();
        for (size_t i = 0; i < to.values.size(); i++) {
            const double sum = to.values[i] + residual->values[i];
            if (to.dtype) ((uint16_t*)to.data)[i] = to_bf16(sum);
            else to.floats()[i] = (float)sum;
        }
    }
    int64_t runs() const { return offsets.size() / 3; }
#define ARGUMENTS(s) s.kind == 0 ? s.k : 0, s.packed.floats(), s.offsets.data(), s.runs()
};

static void run(Random& r) {
    static const int64_t channels[] = {3, 16, 17, 24, 40}, hidden[] = {5, 32, 72};
    static const int64_t large[] = {1, 1, 1, 1, 1, 1, 1, 6};  // so that not all samples fit the cache at once
    const int64_t scale = r.of(large), n = r.between(1, 5), c = r.of(channels), h = scale * r.between(1, 9), w = scale * r.between(1, 9);
    const int64_t k = r.of(hidden), dtype = r.below(3) == 0, threads = r.between(1, 3);
    const int64_t act = 5 * r.below(2), placement = r.below(3), size = n * c * h * w;
    const Space before(r, dtype, n, c, h, w), after(r, dtype, n, c, h, w);
    char where[160];
    snprintf(where, sizeof where, "dtype %d, x %d %d %d %d, %d hidden, kinds %d %d, kernels %d %d, act %d, placement %d", (int)dtype,
             (int)n, (int)c, (int)h, (int)w, (int)k, (int)before.kind, (int)after.kind, (int)before.k, (int)after.k, (int)act,
             (int)placement);
    const Tensor x(dtype, size, r), w1(0, k * c, r), b1(0, k, r), w2(0, k * c, r), b2(0, k, r), wg(0, c * k, r), bg(0, c, r);
    Tensor star(0, starshift_star_mlp_packed_floats(dtype, c, k, c)), y(dtype, size), z(dtype, size), expected(dtype, size), out(dtype, size);
    starshift_star_mlp_pack_for(dtype, c, k, c, w1.floats(), b1.floats(), w2.floats(), b2.floats(), wg.floats(), bg.floats(), star.floats(), 1);
    before.apply(x, nullptr, y);
    starshift_star_mlp_forward(dtype, n * h * w, c, k, c, PLAIN(y.data), star.floats(), act, placement, z.data, nullptr, nullptr, 1);
    after.apply(z, &x, expected);
    starshift_star_block_folded(dtype, threads, n, c, h, w, k, x.data, ARGUMENTS(before), star.floats(), act, placement,
                                ARGUMENTS(after), out.data);
    expected.read();
    check("output", out, expected.values, where);
}

int main(int, char** arguments) {
    Random random;
    for (int i = atoi(arguments[1]) / 2; i > 0; i--) run(random);
}
