// SPDX-License-Identifier: Apache-2.0
// Panels of pixels whose channels come from displaced addresses, and back: what a shift beside a matrix product becomes.
#pragma once
#include "gather.h"

struct Shape {  // x: N C H W, displaced; result: N K ceil(H / stride) ceil(W / stride)
    int64_t N, C, H, W, K, stride;
    int64_t pixels = 144;  // wished for in a chunk
    int64_t Ho() const { return (H + stride - 1) / stride; }
    int64_t Wo() const { return (W + stride - 1) / stride; }
    int64_t c() const { return panels(C) * PANEL; }
    int64_t k() const { return panels(K) * PANEL; }
    // Rows of the result in a chunk: so many that a product has work, so few that operands stay in cache.
    int64_t chunk() const { return most(1, least(N * Ho(), pixels / Wo())); }
    int64_t space() const { return round_up(chunk() * Wo(), ROW_MULTIPLE); }
};

template <class T>
constexpr int64_t PER_LINE = 64 / (VL * (int64_t)sizeof(T)) < 1 ? 1 : 64 / (VL * (int64_t)sizeof(T));  // vectors

// One row of pixels, a cache line of each, where the tensor has it.
template <class T>
INLINE void fetch_ahead(const T* row, const Shape& s, const T* x) {
    if (row + s.W * s.C > x + s.N * s.H * s.W * s.C) return;
    for (int64_t p = 0; p < s.W; p++) __builtin_prefetch(row + p * s.C);
}

// Rows first .. last of the result (counted over all images) as panels of `space` lines, channels of groups begin .. end
// of the table; of floats, or of bfloat16: then a left operand of pairs.
//
// A row is read in as many steps as it has groups, each along the row with a stride: what the processor does not foresee.
// So the line that the next row is the first to need is fetched ahead.
template <class T, class Stored>
INLINE void pack_displaced(const Table<vi>& table, const Shape& s, const T* x, Range groups, int64_t first,
                           int64_t last, int64_t space, Stored* to) {
    int64_t line = s.W * s.C, Ho = s.Ho(), Wo = s.Wo();
    for (int64_t r = first; r < last; r++) {
        int64_t n = r / Ho, y = r % Ho * s.stride;
        const T* image = x + n * s.H * line;
        for (int64_t g = groups.begin; g < groups.end; g++) {
            const Group<vi>& group = table[g];
            Stored* at = to + ((g - groups.begin) / VECTORS * space + (r - first) * Wo) * PANEL + g % VECTORS * VL;
            auto row = [&](int64_t dy) {
                return y + dy < 0 || y + dy >= s.H ? (const T*)nullptr : image + (y + dy) * line + group.channel;
            };
            if (g % PER_LINE<T> == 0) fetch_ahead(image + (y + table.reach + s.stride) * line + group.channel, s, x);
            auto put = [&](int64_t p, vi value) __attribute__((always_inline)) {
                store(at + p * PANEL, (vf)value);
            };
            Steps steps{s.stride, 1};
            if (group.n == VL)
                gather(group, Wo, s.W, s.C, steps, row, [](const T* p) { return (vi)load(p); }, put);
            else
                gather(group, Wo, s.W, s.C, steps, row, [&](const T* p) { return (vi)load_n(p, (int)group.n); }, put);
        }
    }
    if (groups.end % VECTORS)  // the last panel has a vector that no channel fills
        for (int64_t i = 0; i < space; i++)
            for (int64_t v = groups.end % VECTORS; v < VECTORS; v++)
                store(to + ((groups.end - groups.begin) / VECTORS * space + i) * PANEL + v * VL, (vf){});
}

// The last rows of a panel matrix that grows chunk after chunk.
template <class T>
struct Ring {
    Ring(const Shape& s, int64_t reach, int64_t panel_count)
        : rows(s.chunk()), space(s.space()), width(s.Wo()),
          slots((2 * least(reach, s.H) / s.stride + 2 + rows - 1) / rows + 1), panel(slots * space * PANEL),
          data((panel * panel_count * sizeof(T) + 3) / 4) {}
    T* line(int64_t row) const {
        return reinterpret_cast<T*>((float*)data) + (row / rows % slots * space + row % rows * width) * PANEL;
    }

    int64_t rows, space, width, slots;
    int64_t panel;  // numbers from panel to panel
    Scratch data;
};

// One row (image n, y) of the displaced tensor's gradient from the ring, whose rows count from image `origin`. table has
// the opposite displacements. put(group, x, value) takes what arrives at pixel x.
template <class T, class Put>
INLINE void collect_row(const Table<vi>& table, const Shape& s, const Ring<T>& ring, Range groups, int64_t origin,
                        int64_t n, int64_t y, const Put& put) {
    int64_t Ho = s.Ho();
    for (int64_t g = groups.begin; g < groups.end; g++) {
        int64_t at = (g - groups.begin) / VECTORS * ring.panel + g % VECTORS * VL;
        auto row = [&](int64_t dy) {
            const int64_t to = (y + dy) / s.stride;
            const bool kept = y + dy >= 0 && (y + dy) % s.stride == 0 && to < Ho;
            return kept ? ring.line((n - origin) * Ho + to) + at : (const T*)nullptr;
        };
        auto out = put(table[g]);
        auto take = [&](int64_t x, vi value) __attribute__((always_inline)) { out(x, (vf)value); };
        auto read = [](const T* p) { return (vi)load(p); };
        if (s.stride == 1)
            gather(table[g], s.W, s.W, PANEL, Steps{}, row, read, take);
        else
            gather(table[g], s.W, s.Wo(), PANEL, Steps{1, s.stride}, row, read, take);
    }
}

// Goes through the images begin .. end: make(first, last, at) fills the ring for rows of the result counted from begin,
// then done(n, y) takes every row of the displaced tensor for which all is there.
template <class T, class Make, class Done>
INLINE void through_ring(const Shape& s, const Ring<T>& ring, int64_t reach, int64_t begin, int64_t end, const Make& make,
                         const Done& done) {
    int64_t Ho = s.Ho(), rows = (end - begin) * Ho, next = 0;
    for (int64_t first = 0; first < rows; first += ring.rows) {
        int64_t last = least(first + ring.rows, rows);
        make(first, last, ring.line(first));
        for (; next < (end - begin) * s.H; next++) {
            int64_t n = next / s.H, y = next % s.H;
            if (n * Ho + least(Ho - 1, (y + reach) / s.stride) >= last) break;
            done(begin + n, y);
        }
    }
}
