// SPDX-License-Identifier: Apache-2.0
// Rows of an image as the passes read them: the tensor itself, or a tile, a copy as float32 in work space.
//
// A tile does once what the loops over taps would else do for every tap: the conversion from bfloat16, channels that
// fill no vector, and the arithmetic of `Source` (see _native.py).
#pragma once
#include "simd.h"

namespace depthwise {

constexpr int64_t BLOCK = 16;  // channels of a tile: one cache line of float32
constexpr int64_t VECTORS = BLOCK / VL;

// Hides from the compiler where a pointer came from: else it would keep what it loads for use in registers it lacks.
#define OPAQUE(pointer) asm("" : "+r"(pointer))

struct Span {
    int64_t begin, end;
    int64_t size() const { return end > begin ? end - begin : 0; }
};

inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
inline int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline Span clip(Span a, int64_t end) { return {most(a.begin, 0), least(a.end, end)}; }

// One vector of channels of an image: floats from one row, and from one column, to the next.
struct View {
    const float* data;
    int64_t row, column, height, width;
};

// A channels-last tensor as it is read: sample_scale[n] * (scale[c] * tensor + other_scale[c] * other + shift[c]).
template <class T>
struct Source {
    const T *tensor, *other;
    const float *scale, *other_scale, *shift, *sample_scale;
    int64_t samples, height, width, channels;

    bool plain() const { return !other && !scale && !shift && !sample_scale; }
};

// The arithmetic for one vector of channels of one sample.
template <class T>
struct Reader {
    vf scale, other_scale, shift;
    vi mask;
    int used;
    const T *end, *other_end;

    Reader() = default;
    Reader(const Source<T>& s, int64_t n, int64_t c) {
        const float sample = s.sample_scale ? s.sample_scale[n] : 1;
        const int64_t elements = s.samples * s.height * s.width * s.channels;
        used = (int)least(s.channels - c, VL);
        for (int i = 0; i < VL; i++) mask[i] = i < used ? -1 : 0;
        scale = sample * (s.scale ? load_n(s.scale + c, used) : broadcast(1));
        other_scale = sample * (s.other_scale ? load_n(s.other_scale + c, used) : broadcast(1));
        shift = s.shift ? sample * load_n(s.shift + c, used) : (vf){};
        end = s.tensor + elements;
        other_end = s.other ? s.other + elements : nullptr;
    }
    // Whole vectors are read where the tensor has as many elements left: what follows the channels is masked away.
    template <bool FULL>
    INLINE vf elements(const T* p, const T* stop) const {
        if (FULL) return load(p);
        if (stop - p < VL) return load_n(p, used);
        return (vf)((vi)load(p) & mask);
    }
    template <bool FULL, bool PLAIN, bool OTHER>
    INLINE vf value(const T* a, const T* b) const {
        vf v = elements<FULL>(a, end);
        if (!PLAIN) v = v * scale + shift;
        if (OTHER) v += other_scale * elements<FULL>(b, other_end);
        return FULL || PLAIN ? v : (vf)((vi)v & mask);
    }
};

template <class T, bool FULL, bool PLAIN, bool OTHER>
static void fill_pixels(const Source<T>& s, int64_t n, int64_t c, Span rows, int64_t vectors, float* tile) {
    Reader<T> read[VECTORS];
    for (int64_t v = 0; v < vectors; v++) read[v] = Reader<T>(s, n, c + v * VL);
    const int64_t first = (n * s.height + rows.begin) * s.width * s.channels + c;
    const T *a = s.tensor + first, *b = OTHER ? s.other + first : a;
    for (int64_t i = rows.size() * s.width; i > 0; i--, a += s.channels, b += s.channels, tile += vectors * VL)
        for (int64_t v = 0; v < (FULL ? VECTORS : vectors); v++)
            store(tile + v * VL, read[v].template value<FULL, PLAIN, OTHER>(a + v * VL, b + v * VL));
}

// Copy rows of sample n, for at most BLOCK channels from c on, to `tile`: (rows, width, vectors, VL).
template <class T>
static void fill(const Source<T>& s, int64_t n, int64_t c, Span rows, int64_t vectors, float* tile) {
    const bool full = s.channels - c >= BLOCK, plain = s.plain(), other = s.other;
    auto run = full ? plain ? fill_pixels<T, true, true, false>
                    : other ? fill_pixels<T, true, false, true>
                            : fill_pixels<T, true, false, false>
               : plain ? fill_pixels<T, false, true, false>
               : other ? fill_pixels<T, false, false, true>
                       : fill_pixels<T, false, false, false>;
    run(s, n, c, rows, vectors, tile);
}

}  // namespace depthwise
