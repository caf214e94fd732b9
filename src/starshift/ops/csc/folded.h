// SPDX-License-Identifier: Apache-2.0
// A conv-shift-conv module in inference, its norms folded away: relu(w2 shift(relu(w1 x + b1)) + b2) + shortcut(x), the
// second ReLU on the branch or after the sum. A few samples at a time, so that what lies between stays in cache.
#pragma once
#include "../native/calls.h"
#include "../shift/conv.h"

struct Folded {
    Shape second;              // of the shift and the second convolution, whose input has the middle channels
    int64_t C, dtype;
    const float *w1, *w2;      // with their biases, by starshift_conv_pack_for and starshift_csc_pack_for
    const float* shortcut;     // by starshift_conv_pack_for; null: the shortcut is x
    const int64_t* offsets;
    int64_t runs;
    bool after_sum;            // the second ReLU
    int64_t threads;

    // A 1x1 convolution of x to K channels.
    void pointwise(int64_t N, const void* x, int64_t K, int64_t stride, const float* w, int64_t act, void* to) const {
        const int64_t H = second.H, W = second.W;
        const int64_t sizes[13] = {N, C, H, W, K, (H + stride - 1) / stride, (W + stride - 1) / stride,
                                   1, 1, stride, stride, 0, 0};
        starshift_conv_forward(dtype, threads, sizes, x, w, act, to);
    }
};

// Panels to rows of the result, with both ReLU and the shortcut.
template <class T>
void add_shortcut(const float* from, int64_t space, int64_t first, int64_t rows, int64_t columns, bool after_sum,
                  const T* shortcut, T* to) {
    for (int64_t column = 0; column < columns; column += VL) {
        const int n = (int)least(VL, columns - column);
        const float* line = from + column / PANEL * space * PANEL + column % PANEL;
        int64_t at = first * columns + column;
        for (int64_t r = 0; r < rows; r++, line += PANEL, at += columns) {
            const vf branch = load(line), other = load_n(shortcut + at, n);
            store_n(to + at, after_sum ? vmax0(branch + other) : vmax0(branch) + other, n);
        }
    }
}

template <class T>
void run_folded(const Folded& f, const T* x, T* out) {
    constexpr int64_t CACHED_HERE = 128 * 1024;  // floats of the middle tensor
    constexpr int64_t NONE = 0, RELU = 1;        // codes of activation.h
    const Shape& s = f.second;
    const int64_t in = f.C * s.H * s.W, wide = s.C * s.H * s.W, result = s.K * s.Ho() * s.Wo();
    const int64_t samples = least(s.N, most(1, CACHED_HERE / wide));
    Scratch middle(samples * wide), short_room(f.shortcut ? samples * result : 0);
    T* h = reinterpret_cast<T*>((float*)middle);
    for (int64_t n = 0; n < s.N; n += samples) {
        const int64_t count = least(samples, s.N - n);
        const T* from = x + n * in;
        T* to = out + n * result;
        const T* other = from;
        f.pointwise(count, from, s.C, 1, f.w1, RELU, h);
        if (f.shortcut) {
            f.pointwise(count, from, s.K, s.stride, f.shortcut, NONE, (float*)short_room);
            other = reinterpret_cast<const T*>((float*)short_room);
        }
        Shape some = s;
        some.N = count;
        conv_packed<UnitOf<T>>(some, f.offsets, f.runs, h, f.w2, f.threads,
                    [&](const float* panels, int64_t space, int64_t first, int64_t rows) {
                        add_shortcut(panels, space, first, rows, s.K, f.after_sum, other, to);
                    });
    }
}
