// SPDX-License-Identifier: Apache-2.0
// Dense convolution in inference, with bias and activation; README.md has the method.
//
// Rows of the image are copied with their zero borders, a few at a time; what an output pixel reads of a row, kw pixels of
// C channels, then lies side by side. A tile of output pixels by channels stays in registers while the weights, laid out
// in panels (panels.h), pass by.
#include <type_traits>

#include "activation.h"
#include "calls.h"
#include "chunks.h"

namespace {

constexpr int64_t CACHED = 24 * 1024;  // words of image rows that a thread copies at a time

// Samples, input, output, then kernel, stride and padding, each vertical first.
struct Geometry {
    int64_t N, C, H, W, out_c, out_h, out_w, kh, kw, stride_y, stride_x, pad_y, pad_x;
    // In words of what products multiply: a pixel, what an output reads of a row and of all, and a copied row as far as
    // tiles read it, the last of which may be half empty.
    template <class Unit>
    int64_t pixel() const { return words<Unit>(C); }
    template <class Unit>
    int64_t run() const { return kw * pixel<Unit>(); }
    template <class Unit>
    int64_t depth() const { return kh * run<Unit>(); }
    template <class Unit>
    int64_t row() const { return ((round_up(out_w, VL == 16 ? 4 : 6) - 1) * stride_x + kw) * pixel<Unit>(); }
    template <class Unit>
    int64_t packed() const { return panels(out_c) * PANEL * (depth<Unit>() + 1); }
    int64_t rows_read(int64_t out_rows) const { return (out_rows - 1) * stride_y + kh; }
};

// Input rows from `first` on, with zeros around them, and behind an odd channel where two make a word.
template <class Unit, class T>
void copy_rows(const Geometry& g, const T* sample, int64_t first, int64_t rows, float* copied) {
    using Number = std::conditional_t<Unit::PAIRS, bf16, float>;
    const int64_t c = g.pixel<Unit>() * Unit::IN_WORD, row = g.row<Unit>() * Unit::IN_WORD;
    const int64_t left = least(g.pad_x * c, row), pixels = least(g.W, (row - left) / c), n = pixels * c;
    Number* to = (Number*)copied;
    for (int64_t y = first; y < first + rows; y++, to += row) {
        const bool inside = y >= 0 && y < g.H;
        memset((void*)to, 0, (inside ? left : row) * sizeof(Number));
        if (!inside) continue;
        const T* from = sample + y * g.W * g.C;
        Number* at = to + left;
        if (c != g.C) {
            for (int64_t p = 0; p < pixels; p++, at += c, from += g.C) {
                for (int64_t i = 0; i < g.C; i++) store1(at + i, load1(from + i));
                at[g.C] = {};
            }
        } else if constexpr (std::is_same_v<Number, T>) {
            memcpy(at, from, n * sizeof(T));
        } else {
            int64_t i = 0;
            for (; i + VL <= n; i += VL) store(at + i, load(from + i));
            for (; i < n; i++) store1(at + i, load1(from + i));
        }
        memset((void*)(to + left + n), 0, (row - left - n) * sizeof(Number));
    }
}

// Sums of R output pixels, `step` words apart in the rows, and P panels of channels: to[P][R][16].
template <class Unit, int R, int P, int V>
inline __attribute__((noinline)) void tile(const Geometry& g, const float* rows, int64_t step, const float* b, float* to) {
    constexpr int BASES = (R + 2) / 3;  // of three pixels each: so many addresses fit the registers
    const int64_t run = g.run<Unit>(), next = g.depth<Unit>() * PANEL;
    vf sums[R][P * V];
    each<R>(LAMBDA(r) { each<P * V>(LAMBDA(i) { sums[r][i] = (vf){}; }); });
    for (int64_t ky = 0; ky < g.kh; ky++, rows += g.row<Unit>()) {
        const float* a[BASES];
        each<BASES>(LAMBDA(i) { a[i] = rows + 3 * i * step; });
#pragma GCC unroll 2
        for (int64_t k = 0; k < run; k++, b += PANEL) {
            vf line[P * V];
            each<P * V>(LAMBDA(i) { line[i] = load(b + i / V * next + i % V * VL); });
            each<R>(LAMBDA(r) { add_products<Unit, P * V>(sums[r], a[r / 3] + r % 3 * step, line); });
            each<BASES>(LAMBDA(i) { a[i]++; });
        }
    }
    each<R>(LAMBDA(r) { each<P * V>(LAMBDA(i) { store(to + (i / V * R + r) * PANEL + i % V * VL, sums[r][i]); }); });
}

// One panel's sums into `n` channels of the output.
template <class T>
using Finish = void (*)(const float* sums, const float* bias, int64_t pixels, int64_t n, T* out, int64_t out_c);
template <class T, class Act>
void finish(const float* sums, const float* bias, int64_t pixels, int64_t n, T* out, int64_t out_c) {
    for (int64_t v = 0; v < least(n, PANEL); v += VL) {
        const vf b = load(bias + v);
        for (int64_t i = 0; i < pixels; i++)
            store_n(out + i * out_c + v, Act::forward(load(sums + i * PANEL + v) + b), (int)least(VL, n - v));
    }
}

// One row of the output for P panels of channels from c on.
template <class Unit, int R, int P, int V, class T>
void write_row(const Geometry& g, const float* rows, const float* packed, int64_t c, Finish<T> finish, T* out) {
    const float *b = packed + c * g.depth<Unit>(), *biases = packed + panels(g.out_c) * PANEL * g.depth<Unit>() + c;
    const int64_t step = g.stride_x * g.pixel<Unit>();
    alignas(64) float sums[P * R * PANEL];
    for (int64_t x = 0; x < g.out_w;) {
        const int64_t left = g.out_w - x;
        int64_t made = R;
        if (R <= 8 || left > 8)
            tile<Unit, R, P, V>(g, rows + x * step, step, b, sums);
        else if (left > 4)
            tile<Unit, 8, P, V>(g, rows + x * step, step, b, sums), made = 8;
        else
            tile<Unit, 4, P, V>(g, rows + x * step, step, b, sums), made = 4;
        for (int p = 0; p < P; p++)
            finish(sums + p * made * PANEL, biases + p * PANEL, least(made, left), g.out_c - c - p * PANEL,
                   out + x * g.out_c + c + p * PANEL, g.out_c);
        x += made;
    }
}

template <class T>
void forward(const Geometry& g, const T* x, const float* packed, int64_t act, T* out, int64_t threads) {
    using Unit = UnitOf<T>;
    const int64_t rows = g.N * g.out_h, columns = panels(g.out_c), row_words = g.row<Unit>();
    // Few pixels and many channels: each thread reads its part of the weights, and all pixels.
    const bool by_columns = rows * g.out_w < g.out_c && columns >= threads;
    const int64_t fitting = (CACHED / row_words - g.kh) / g.stride_y + 1, group = most(1, least(fitting, g.out_h));
    Finish<T> finish_panel{};
    with_activation(act, [&](auto a) { finish_panel = finish<T, decltype(a)>; });
    parallel(by_columns ? threads : most(1, least(threads, rows)), [&](int64_t t, int64_t of) {
        const Range mine = by_columns ? Range{0, rows} : share(rows, t, of);
        const Range some = by_columns ? share(columns, t, of) : Range{0, columns};
        Scratch copied(g.rows_read(group) * row_words);
        for (int64_t first = mine.begin, end; first < mine.end; first = end) {
            const int64_t n = first / g.out_h, oy = first % g.out_h;
            end = least(least(first + group, mine.end), (n + 1) * g.out_h);
            copy_rows<Unit>(g, x + n * g.H * g.W * g.C, oy * g.stride_y - g.pad_y, g.rows_read(end - first), copied);
            for (int64_t p = some.begin; p < some.end;) {
                const bool pair = VL == 16 && !FACTORS_FROM_MEMORY && p + 1 < some.end;
                for (int64_t row = first; row < end; row++) {
                    const float* at = copied + (row - first) * g.stride_y * row_words;
                    T* to = out + row * g.out_w * g.out_c;
                    if (pair)
                        write_row<Unit, 12, 2, VECTORS>(g, at, packed, p * PANEL, finish_panel, to);
                    else
                        write_row<Unit, (VL == 16 ? 12 : REGISTERS == 32 || VL == 8 ? 6 : 2), 1, VECTORS>(
                            g, at, packed, p * PANEL, finish_panel, to);
                }
                p += pair ? 2 : 1;
            }
        }
    });
}

// Panels of [kh][kw][C][16], then the bias.
template <class Unit>
void pack(const Geometry& g, const float* weight, const float* bias, float* to) {
    const int64_t taps = g.kh * g.kw, pixel = g.pixel<Unit>();
    for (int64_t p = 0; p < panels(g.out_c); p++)
        for (int64_t tap = 0; tap < taps; tap++, to += pixel * PANEL)
            for (int64_t c = 0; c < pixel * Unit::IN_WORD; c++)
                for (int64_t j = 0; j < PANEL; j++) {
                    const int64_t o = p * PANEL + j;
                    const float value = o < g.out_c && c < g.C ? weight[(o * g.C + c) * taps + tap] : 0;
                    put_number<Unit>(to + c / Unit::IN_WORD * PANEL + j, c % Unit::IN_WORD, value);
                }
    copy_padded(bias, g.out_c, panels(g.out_c) * PANEL, to);
}

Geometry geometry(const int64_t* s) {
    return {s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12]};
}

}  // namespace

// sizes: those of Geometry, in its order.

// How many floats starshift_conv_pack_for writes.
API int64_t starshift_conv_packed_floats(int64_t dtype, const int64_t* sizes) {
    return dtype == 0 ? geometry(sizes).packed<Floats>() : geometry(sizes).packed<UnitOf<bf16>>();
}

// weight: (out_c, C, kh, kw).
API void starshift_conv_pack_for(int64_t dtype, const int64_t* sizes, const float* weight, const float* bias,
                                 float* packed) {
    (dtype == 0 ? pack<Floats> : pack<UnitOf<bf16>>)(geometry(sizes), weight, bias, packed);
}

API void starshift_conv_forward(int64_t dtype, int64_t threads, const int64_t* sizes, const void* x,
                                const float* packed, int64_t act, void* out) {
    const Geometry g = geometry(sizes);
    if (dtype == 0)
        forward(g, (const float*)x, packed, act, (float*)out, threads);
    else
        forward(g, (const bf16*)x, packed, act, (bf16*)out, threads);
}
