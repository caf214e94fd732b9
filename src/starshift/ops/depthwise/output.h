// SPDX-License-Identifier: Apache-2.0
// What happens to a value on its way out: out = residual + sample_scale[n] * value, and two sums a channel.
#pragma once
#include "sums.h"
#include "tile.h"

namespace depthwise {

// Where a pass writes one vector of channels: floats from one row, and from one column, to the next.
struct Target {
    float* data;
    int64_t row, column;
    bool past_caches = false;  // whole lines of it, see simd.h
    bool narrow = false;       // it is bfloat16 that is written, as pairs.h can
};

INLINE void put(const Target& to, float* at, vf value) {
    if (to.past_caches)
        stream(at, value);
    else
        store(at, value);
}

template <class T>
struct Output {
    T* data;
    const T *residual, *partner;         // partner: the sums are of out and out * (partner - center)
    const float *sample_scale, *center;  // else: of value - center and its square
    double* sums;                        // (2, channels); null: none
    int64_t height, width, channels;
    bool past_caches = false;

    bool plain() const { return !residual && !sample_scale && !sums; }
    // Whether it may go past the caches: it is written in whole lines, and large.
    bool streams(int64_t samples) const {
        const bool lines = std::is_same<T, float>::value && VL == BLOCK && channels % VL == 0;
        return lines && may_stream(data, samples * height * width * channels * (int64_t)sizeof(T));
    }
};

template <class T, bool FULL>
static void finish_rows(const Output<T>& o, int64_t n, int64_t c, Span rows, const Target& from) {
    const int used = FULL ? VL : (int)least(o.channels - c, VL);
    const float scale = o.sample_scale ? o.sample_scale[n] : 1;
    const vf center = o.center ? load_n(o.center + c, used) : (vf){};
    const vf near = load(from.data);  // a value of this channel is nearer to its mean than zero is
    vf sum = {}, product = {};
    for (int64_t y = rows.begin; y < rows.end; y++) {
        const float* p = from.data + (y - rows.begin) * from.row;
        int64_t at = (n * o.height + y) * o.width * o.channels + c;
        for (int64_t x = 0; x < o.width; x++, p += from.column, at += o.channels) {
            const vf value = load(p);
            vf out = o.sample_scale ? value * scale : value;
            if (o.residual) out += load_n(o.residual + at, used);
            store_n(o.data + at, out, used);
            if (!o.sums) continue;
            const vf first = o.partner ? out : value - near;
            const vf second = o.partner ? load_n(o.partner + at, used) - center : first;
            sum += first;
            product += first * second;
        }
    }
    const double count = (double)((rows.end - rows.begin) * o.width);
    for (int i = 0; o.sums && i < used; i++)
        if (o.partner) {
            o.sums[c + i] += sum[i];
            o.sums[o.channels + c + i] += product[i];
        } else {
            move_sums(sum[i], product[i], count, near[i], center[i], o.sums + c + i, o.channels);
        }
}

// Write `rows` of sample n, for the vector of channels from c on; `from` holds what a pass wrote, from rows.begin on.
template <class T>
static void finish(const Output<T>& o, int64_t n, int64_t c, Span rows, const Target& from) {
    (o.channels - c >= VL ? finish_rows<T, true> : finish_rows<T, false>)(o, n, c, rows, from);
}

}  // namespace depthwise
