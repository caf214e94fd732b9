// SPDX-License-Identifier: Apache-2.0
// A tile: a rectangle of an image for one block of channels, as float32 in work space, with zeros outside the image.
//
// Copying into it does once what the loops over taps would do at every tap: the border, the conversion from bfloat16,
// channels that fill no vector, and the arithmetic of `Source` (see _native.py).
#pragma once
#include "simd.h"

namespace depthwise {

constexpr int64_t BLOCK = 16;  // channels of a tile: one cache line of float32
constexpr int64_t VECTORS = BLOCK / VL;

// Hides from the compiler where a pointer came from: else it would keep loads for later taps in registers it lacks.
#define OPAQUE(pointer) asm("" : "+r"(pointer))

struct Span {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
};

struct Box {
    Span y, x;
};

inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
inline int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }
inline Span join(Span a, Span b) { return {a.begin < b.begin ? a.begin : b.begin, a.end > b.end ? a.end : b.end}; }

// The part of 0 .. n for a thread or a band, with borders at multiples of `unit`.
inline Span part(int64_t n, int64_t index, int64_t parts, int64_t unit) {
    int64_t units = ceil_div(n, unit), end = units * (index + 1) / parts * unit;
    return {units * index / parts * unit, end < n ? end : n};
}

// A channels-last tensor as it is read: sample_scale[n] * (scale[c] * tensor + other_scale[c] * other + shift[c]).
template <class T>
struct Source {
    const T *tensor, *other;
    const float *scale, *other_scale, *shift, *sample_scale;
    int64_t samples, height, width, channels;

    bool plain() const { return !other && !scale && !shift && !sample_scale; }
};

// Whole vectors are read where the tensor has as many elements left: what follows the n channels is masked away.
template <class T>
INLINE vf load_masked(const T* p, vi mask, int n, const T* end) {
    if (end - p < VL) return load_n(p, n);
    return (vf)((vi)load(p) & mask);
}

template <class T, bool PLAIN, bool FULL>
static void fill_rows(const Source<T>& s, int64_t n, int64_t c, const Box& box, float* tile) {
    const int64_t C = s.channels, vectors = FULL ? VECTORS : ceil_div(C - c, VL);
    const T* const end = s.tensor + s.samples * s.height * s.width * C;
    vf scale[VECTORS], other_scale[VECTORS], shift[VECTORS];
    vi mask[VECTORS];
    int part[VECTORS];
    const float sample = s.sample_scale ? s.sample_scale[n] : 1;
    for (int v = 0; v < vectors; v++) {
        int64_t left = C - c - v * VL;
        part[v] = left < VL ? (int)left : VL;
        for (int i = 0; i < VL; i++) mask[v][i] = i < part[v] ? -1 : 0;
        const int64_t at = c + v * VL;
        scale[v] = sample * (s.scale ? load_n(s.scale + at, part[v]) : broadcast(1));
        other_scale[v] = sample * (s.other_scale ? load_n(s.other_scale + at, part[v]) : broadcast(1));
        shift[v] = s.shift ? sample * load_n(s.shift + at, part[v]) : (vf){};
    }
    const Span inside = {box.x.begin < 0 ? 0 : box.x.begin, box.x.end < s.width ? box.x.end : s.width};
    const int64_t row = box.x.size() * BLOCK;
    for (int64_t y = box.y.begin; y < box.y.end; y++, tile += row) {
        if (y < 0 || y >= s.height || inside.size() <= 0) {
            memset(tile, 0, row * sizeof(float));
            continue;
        }
        float* to = tile + (inside.begin - box.x.begin) * BLOCK;
        memset(tile, 0, (to - tile) * sizeof(float));
        const int64_t first = ((n * s.height + y) * s.width + inside.begin) * C + c;
        const T *a = s.tensor + first, *b = s.other + (s.other ? first : 0);
        for (int64_t x = inside.begin; x < inside.end; x++, a += C, b += C, to += BLOCK)
            for (int v = 0; v < vectors; v++) {
                vf value = FULL ? load(a + v * VL) : load_masked(a + v * VL, mask[v], part[v], end);
                if (!PLAIN) {
                    value = value * scale[v] + shift[v];
                    if (s.other) {
                        const T* p = b + v * VL;
                        const T* other_end = s.other + (end - s.tensor);
                        value += other_scale[v] * (FULL ? load(p) : load_masked(p, mask[v], part[v], other_end));
                    }
                    if (!FULL) value = (vf)((vi)value & mask[v]);
                }
                store(to + v * VL, value);
            }
        memset(to, 0, (tile + row - to) * sizeof(float));
    }
}

// Fill `tile` with the channels from c on of sample n inside `box` (in pixels of the image; it may reach outside).
template <class T>
static void fill(const Source<T>& s, int64_t n, int64_t c, const Box& box, float* tile) {
    const bool full = s.channels - c >= BLOCK;
    if (s.plain())
        full ? fill_rows<T, true, true>(s, n, c, box, tile) : fill_rows<T, true, false>(s, n, c, box, tile);
    else
        full ? fill_rows<T, false, true>(s, n, c, box, tile) : fill_rows<T, false, false>(s, n, c, box, tile);
}

}  // namespace depthwise
