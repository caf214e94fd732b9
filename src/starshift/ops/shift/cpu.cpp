// SPDX-License-Identifier: Apache-2.0
// The shift alone, a copy at displaced addresses of elements of 2 or 4 bytes; and with the 1x1 convolution after it.
#include "conv.h"

namespace {

struct Image {
    int64_t N, C, H, W;
};

INLINE vi read(const int32_t* p, int64_t n) { return (vi)load_n(reinterpret_cast<const float*>(p), (int)n); }
INLINE void write(int32_t* p, vi a, int64_t n) { store_n(reinterpret_cast<float*>(p), (vf)a, (int)n); }
INLINE v16 read(const uint16_t* p, int64_t n) {
    if (n >= 2 * VL) return *(const v16_unaligned*)p;
    v16 a = {};
    for (int64_t i = 0; i < n; i++) a[i] = p[i];
    return a;
}
INLINE void write(uint16_t* p, v16 a, int64_t n) {
    if (n >= 2 * VL) {
        *(v16_unaligned*)p = a;
        return;
    }
    for (int64_t i = 0; i < n; i++) p[i] = a[i];
}

template <class V, class E>
void shift_pixels(const Image& s, const int64_t* offsets, int64_t runs, const E* x, E* out, int64_t threads) {
    Table<V> table(offsets, runs, s.C, 1, true);
    parallel(threads, [&](int64_t thread, int64_t of) {
        Range rows = share(s.N * s.H, thread, of);
        for (int64_t r = rows.begin; r < rows.end; r++) {
            int64_t y = r % s.H;
            for (int64_t g = 0; g < table.count; g++) {
                const Group<V>& group = table[g];
                E* to = out + r * s.W * s.C + group.channel;
                auto row = [&](int64_t dy) {
                    return y + dy < 0 || y + dy >= s.H ? (const E*)nullptr : x + (r + dy) * s.W * s.C + group.channel;
                };
                auto move = [&](int64_t n) __attribute__((always_inline)) {
                    gather(group, s.W, s.W, s.C, Steps{}, row, [n](const E* p) { return read(p, n); },
                           [&](int64_t at, V value, V) { write(to + at * s.C, value, n); });
                };
                if (group.n == Table<V>::LANES)
                    move(Table<V>::LANES);
                else
                    move(group.n);
            }
        }
    });
}

// Channel planes one after another: each is a displaced copy of rows.
template <class E>
void shift_planes(const Image& s, const int64_t* offsets, int64_t runs, const E* x, E* out, int64_t threads) {
    parallel(threads, [&](int64_t thread, int64_t of) {
        Range planes = share(s.N * s.C, thread, of);
        for (int64_t plane = planes.begin; plane < planes.end; plane++) {
            int64_t run = 0;
            for (int64_t c = plane % s.C; c >= offsets[3 * run]; run++) c -= offsets[3 * run];
            int64_t dy = offsets[3 * run + 1], dx = offsets[3 * run + 2];
            int64_t left = least(s.W, most(0, -dx)), right = most(left, least(s.W, s.W - dx));
            for (int64_t y = 0; y < s.H; y++) {
                E* to = out + (plane * s.H + y) * s.W;
                if (y + dy < 0 || y + dy >= s.H || left == right) {
                    memset(to, 0, s.W * sizeof(E));
                    continue;
                }
                memset(to, 0, left * sizeof(E));
                memcpy(to + left, x + (plane * s.H + y + dy) * s.W + left + dx, (right - left) * sizeof(E));
                memset(to + right, 0, (s.W - right) * sizeof(E));
            }
        }
    });
}

}  // namespace

// bytes: of an element, 2 or 4. last: channels last, else planes. offsets: runs of (channels, dy, dx).
API void starshift_shift2d(int64_t bytes, int64_t last, int64_t N, int64_t C, int64_t H, int64_t W, const void* x,
                           const int64_t* offsets, int64_t runs, void* out, int64_t threads) {
    Image s{N, C, H, W};
    if (bytes == 4 && last)
        shift_pixels<vi>(s, offsets, runs, (const int32_t*)x, (int32_t*)out, threads);
    else if (bytes == 4)
        shift_planes(s, offsets, runs, (const int32_t*)x, (int32_t*)out, threads);
    else if (last)
        shift_pixels<v16>(s, offsets, runs, (const uint16_t*)x, (uint16_t*)out, threads);
    else
        shift_planes(s, offsets, runs, (const uint16_t*)x, (uint16_t*)out, threads);
}

// dtype: 0 float32, 1 bfloat16, of x, out and their gradients, which are channels last; weights are float32.
API void starshift_shift_conv2d_forward(int64_t dtype, int64_t N, int64_t C, int64_t H, int64_t W, int64_t K,
                                        int64_t stride, const void* x, const float* w, const float* bias,
                                        const int64_t* offsets, int64_t runs, void* out, int64_t threads) {
    Shape s{N, C, H, W, K, stride};
    if (dtype == 0)
        conv_forward(s, offsets, runs, (const float*)x, w, bias, (float*)out, threads, Plain{});
    else
        conv_forward(s, offsets, runs, (const bf16*)x, w, bias, (bf16*)out, threads, Plain{});
}

API void starshift_shift_conv2d_backward(int64_t dtype, int64_t N, int64_t C, int64_t H, int64_t W, int64_t K,
                                         int64_t stride, const void* grad, const void* x, const float* w,
                                         const int64_t* offsets, int64_t runs, void* gx, float* gw, float* gb,
                                         int64_t threads) {
    Shape s{N, C, H, W, K, stride};
    if (dtype == 0)
        conv_backward(s, offsets, runs, (const float*)grad, (const float*)x, w, (float*)gx, gw, gb, threads);
    else
        conv_backward(s, offsets, runs, (const bf16*)grad, (const bf16*)x, w, (bf16*)gx, gw, gb, threads);
}
