// SPDX-License-Identifier: Apache-2.0
// The most that this machine's arithmetic gives: fused multiply-adds on registers, no memory at all.
#include "scratch.h"
#include "units.h"

// Independent sums: more than latency (4 to 5 cycles) x units (2), and within the registers, so that every unit starts
// one at every cycle.
constexpr int SUMS = 12;

template <class Unit>
void multiply_add(float* out, int64_t operations, int64_t threads) {
    parallel(threads, [&](int64_t thread, int64_t) {
        vf sums[SUMS], scale = broadcast(out[thread]), step = broadcast(out[thread] + 1e-3f);
        for (int i = 0; i < SUMS; i++) sums[i] = broadcast((float)i);
        for (int64_t round = 0; round < operations / (2 * SUMS * VL * Unit::IN_WORD); round++)
#pragma GCC unroll 12
            for (int i = 0; i < SUMS; i++) sums[i] = Unit::add_product(step, sums[i], scale);
        vf total = sums[0];
        for (int i = 1; i < SUMS; i++) total += sums[i];
        out[thread] = sum(total);
    });
}

// About `operations` on each thread (a multiply-add is two), of what products of tensors of this dtype multiply.
// out[thread], whose value matters little, makes the work needed.
API void starshift_peak_operations(int64_t dtype, float* out, int64_t operations, int64_t threads) {
    (dtype == 0 ? multiply_add<Floats> : multiply_add<UnitOf<bf16>>)(out, operations, threads);
}
