// SPDX-License-Identifier: Apache-2.0
// For kernels whose hidden units, wider than the tensors around them, live in cache alone: rows in chunks, weights packed.
#pragma once
#include "rows.h"

// M rows (pixels), C channels in, K hidden units, N channels out.
struct Sizes {
    int64_t M, C, K, N;
    int64_t c() const { return panels(C) * PANEL; }  // as stored: whole panels
    int64_t k() const { return panels(K) * PANEL; }
    int64_t n() const { return panels(N) * PANEL; }
};

// The rows of one thread in equal chunks of at most `most_rows`.
struct Chunks {
    int64_t begin, end, size;
    Chunks(Range range, int64_t most_rows) : begin(range.begin), end(range.end) {
        int64_t count = most(1, (end - begin + most_rows - 1) / most_rows);
        size = round_up((end - begin + count - 1) / count, ROW_MULTIPLE);
    }
};

constexpr int64_t STEP = VL == 16 ? 2 : 1;  // panels that are made before they are used up

INLINE int64_t chunk_rows(const Sizes& s) { return most(s.C, s.N) <= 256 ? 192 : 96; }

// Before threads start, where they add to it: fewer may come than were asked for.
INLINE void clear(float* at, int64_t n) {
    for (int64_t i = 0; i < n; i++) at[i] = 0;
}

inline void copy_padded(const float* from, int64_t n, int64_t space, float* to) {
    for (int64_t i = 0; i < space; i++) to[i] = from && i < n ? from[i] : 0;
}

// This thread's panels of a weight matrix as a right operand, of floats to[column / 16][row][column % 16] =
// w[column * by_column + row * by_row]; zero for rows from `known` and columns from `columns` on.
template <class Unit = Floats>
inline void pack_panels(const float* w, int64_t by_column, int64_t by_row, int64_t rows, int64_t columns, int64_t known,
                        float* to, int64_t thread, int64_t threads) {
    constexpr int64_t W = Unit::IN_WORD;
    Range mine = share(panels(columns), thread, threads);
    for (int64_t p = mine.begin; p < mine.end; p++) {
        const int64_t lines = words<Unit>(rows);
        float* panel = to + p * lines * PANEL;
        int64_t n = least(PANEL, columns - p * PANEL);
        const float* from = w + p * PANEL * by_column;
        for (int64_t i = 0; i < (known < lines * W || n < PANEL ? lines * PANEL : 0); i++) panel[i] = 0;
        if (by_column == 1) {
            for (int64_t r = 0; r < known; r += W) {
                float* line = panel + r / W * PANEL;
                if constexpr (!Unit::PAIRS) {
                    for (int64_t i = 0; i < n; i++) line[i] = from[r * by_row + i];
                } else {
                    vf odd = r + 1 < known ? load_n(from + (r + 1) * by_row, (int)n) : (vf){}, lines, pairs;
                    Unit::join(load_n(from + r * by_row, (int)n), odd, lines, pairs);
                    store(line, pairs);
                }
            }
            continue;
        }
        for (int64_t r0 = 0; r0 < known; r0 += 64)  // a block of rows that stays in the first cache while it is turned
            for (int64_t i = 0; i < n; i++)
                for (int64_t r = r0; r < least(known, r0 + 64); r++)
                    put_number<Unit>(panel + r / W * PANEL + i, r % W, from[i * by_column + r * by_row]);
    }
}

// One panel of a branch: x w + bias.
INLINE void add_bias(float* panel, int64_t rows, const float* bias) {
    for (int v = 0; v < VECTORS; v++) {
        vf b = load(bias + v * VL);
        for (int64_t r = 0; r < rows; r++) store(panel + r * PANEL + v * VL, load(panel + r * PANEL + v * VL) + b);
    }
}

// What each thread added up, `size` floats: all into the first's, in the order of the threads.
inline void add_threads(float* totals, int64_t size, int64_t threads) {
    parallel(threads, [&](int64_t t, int64_t of) {
        const Range part = share(size, t, of);
        for (int64_t other = 1; other < threads; other++)
            for (int64_t i = part.begin; i < part.end; i++) totals[i] += totals[other * size + i];
    });
}
