// SPDX-License-Identifier: Apache-2.0
// Matrix products between matrices in panels, the form in which all operands stay in cache and load without a stride.
//
// A panel matrix of R rows and C columns is [ceil(C / 16)][R][16] floats: sixteen columns at a time, row after row. The
// columns of the last panel that do not exist are zero. Every address inside a product is then a constant away from a
// pointer that moves by one line of 64 bytes. Of pairs (units.h) a left operand is [ceil(C / 16)][R][8] words, a right one
// [ceil(C / 16)][ceil(R / 2)][16], and k is counted in words.
#pragma once
#include "scratch.h"
#include "units.h"

constexpr int PANEL = 16;
constexpr int VECTORS = PANEL / VL;  // in a line of a panel
constexpr int ROW_MULTIPLE = 12;     // rows of a left operand are rounded up to this (the tiles read, and discard, them)

constexpr int WRITTEN = VL == 16 ? 4 : ROW_MULTIPLE;  // a product writes rows up to a multiple of this

// One panel at a time, not two: these cores (AMD's) multiply one vector a cycle and load two operands, so that a factor may
// come from memory for each of its products, and tiles of few sums begin and end the sooner.
#if defined(__AVX512BF16__)
constexpr bool FACTORS_FROM_MEMORY = true;
#else
constexpr bool FACTORS_FROM_MEMORY = false;
#endif

INLINE int64_t panels(int64_t columns) { return (columns + PANEL - 1) / PANEL; }
INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// One term of a sum of products: rows of a times the matrix b (k rows, 16 columns of it).
struct Term {
    const float* a = nullptr;  // the first row of the tile, in the first panel
    int64_t a_stride = 0;      // words from panel to panel of a
    const float* b = nullptr;  // panels of [k][16]
    int64_t k = 0;
    int64_t b_stride = k * PANEL;  // words from panel to panel of b
};

// What a product's sums begin with, and what becomes of them. `held` is what a tile of N vectors of columns keeps in
// registers, `at` the same edge so many columns further. c: where a vector of sums is stored, i: which of the N it is.
struct Sum {  // c = or, with add, c +=
    bool add;
    template <class T>
    INLINE vf begin(const T* c, int) const { return add ? load(c) : (vf){}; }
    static INLINE vf end(vf sum, int) { return sum; }
    template <int N>
    INLINE Sum held() const { return *this; }
    INLINE Sum at(int64_t) const { return *this; }
};
template <int N>
struct Held {  // N vectors that lie one after another
    vf of[N];
    INLINE explicit Held(const float* from) { each<N>(LAMBDA(i) { of[i] = load(from + i * VL); }); }
};
template <int N, bool RELU>
struct HeldBias {
    Held<N> bias;
    INLINE vf begin(const void*, int i) const { return bias.of[i]; }
    static INLINE vf end(vf sum, int) { return RELU ? vmax0(sum) : sum; }
};
template <bool RELU>
struct WithBias {  // c = bias[column] + ..., and ReLU of it
    const float* bias;
    template <int N>
    INLINE HeldBias<N, RELU> held() const { return {Held<N>(bias)}; }
    INLINE WithBias at(int64_t column) const { return {bias + column}; }
};
using Bias = WithBias<false>;
using BiasRelu = WithBias<true>;

// sums[v] += word * row[v]
template <class Unit, int N>
INLINE void add_products(vf* sums, const float* word, const vf* row) {
    if constexpr (N == 1) {
        sums[0] = Unit::add_product(sums[0], word, row[0]);
    } else {
        const vf factor = Unit::factor(word);
        each<N>(LAMBDA(v) { sums[v] = Unit::add_product(sums[v], factor, row[v]); });
    }
}

// c[R][16 P] = sum of terms. P panels of b and c at once, V vectors of each line, so R * P * V sums in registers.
template <class Unit, int R, int P, int V, int COUNT, class Edge, class T>
INLINE void tile(const Term* terms, T* c, int64_t c_stride, const Edge& edge) {
    constexpr int64_t LINE = PANEL / Unit::IN_WORD;
    vf sums[R][P * V];
    auto each_sum = [&](const auto& f) __attribute__((always_inline)) {
        each<R>(LAMBDA(r) {
            each<P * V>(LAMBDA(i) { f(sums[r][i], c + i / V * c_stride + r * PANEL + i % V * VL, i); });
        });
    };
    each_sum([&](vf& sum, T* at, auto i) __attribute__((always_inline)) { sum = edge.begin(at, i); });
    for (int t = 0; t < COUNT; t++) {
        const float* b = terms[t].b;
        for (int64_t k0 = 0; k0 < terms[t].k; k0 += LINE) {
            const float* a = terms[t].a + k0 / LINE * terms[t].a_stride;
            int64_t lines = least(LINE, terms[t].k - k0);
#pragma GCC unroll 4
            for (int64_t k = 0; k < lines; k++, a++, b += PANEL) {
                vf row[P * V];
                each<P * V>(LAMBDA(i) { row[i] = load(b + i / V * terms[t].b_stride + i % V * VL); });
                each<R>(LAMBDA(r) { add_products<Unit, P * V>(sums[r], a + r * LINE, row); });
            }
        }
    }
    each_sum([&](vf& sum, T* at, auto i) __attribute__((always_inline)) { store(at, edge.end(sum, i)); });
}

template <class Unit, int R, int P, int V, int COUNT, class Edge, class T>
inline __attribute__((noinline)) void tiles(const Term* terms, T* c, int64_t c_stride, Edge all, int64_t rows) {
    constexpr int64_t LINE = PANEL / Unit::IN_WORD;
    const auto edge = all.template held<P * V>();
    Term moved[COUNT];
    for (int t = 0; t < COUNT; t++) moved[t] = terms[t];
    int64_t r = 0;
    for (; r < rows - (R > 8 ? 8 : 0); r += R) {
        tile<Unit, R, P, V, COUNT>(moved, c + r * PANEL, c_stride, edge);
        for (int t = 0; t < COUNT; t++) moved[t].a += R * LINE;
    }
    if constexpr (R > 8) {
        if (r + 4 < rows)
            tile<Unit, 8, P, V, COUNT>(moved, c + r * PANEL, c_stride, edge);
        else if (r < rows)
            tile<Unit, 4, P, V, COUNT>(moved, c + r * PANEL, c_stride, edge);
    }
}

// c = a1 b1 [+ a2 b2], of a Term or an array of two, for panels first .. last of c, which has `columns` columns. Up to the
// next multiple of WRITTEN more rows of a and c are read and written. c's panels are c_stride numbers apart.
template <class Unit = Floats, class Terms, class Edge, class T>
inline void product(const Terms& terms, int64_t rows, int64_t first, int64_t last, int64_t columns, T* c,
                    int64_t c_stride, Edge all) {
    constexpr int COUNT = sizeof(Terms) / sizeof(Term);
    for (int64_t p = first; p < last;) {
        Term at[COUNT];
        memcpy(at, &terms, sizeof at);
        for (int t = 0; t < COUNT; t++) {
            at[t].b += p * at[t].b_stride;
        }
        T* to = c + p * c_stride;
        const Edge edge = all.at(p * PANEL);
        int64_t left = columns - p * PANEL;
        if constexpr (VL == 16) {
            if (p + 1 < last && !FACTORS_FROM_MEMORY) {
                tiles<Unit, 12, 2, 1, COUNT>(at, to, c_stride, edge, rows);
                p += 2;
                continue;
            }
            tiles<Unit, 12, 1, 1, COUNT>(at, to, c_stride, edge, rows);
        } else if constexpr (VL == 8) {
            if (left > VL)
                tiles<Unit, 6, 1, VECTORS, COUNT>(at, to, c_stride, edge, rows);
            else
                tiles<Unit, 12, 1, 1, COUNT>(at, to, c_stride, edge, rows);
        } else {
            tiles<Unit, (REGISTERS == 32 ? 6 : 2), 1, VECTORS, COUNT>(at, to, c_stride, edge, rows);
        }
        p++;
    }
}
template <class Unit = Floats, class Terms>
inline void product(const Terms& terms, int64_t rows, int64_t first, int64_t last, int64_t columns, float* c,
                    int64_t c_stride, bool add) {
    product<Unit>(terms, rows, first, last, columns, c, c_stride, Sum{add});
}

// c[R][16 P] += the transpose of R columns of a, times P panels of b; all run over `rows` rows.
template <class Unit, int R, int P, int V>
INLINE void outer_tile(const float* a, const float* b, int64_t b_stride, int64_t rows, float* c, int64_t c_stride) {
    vf sums[R][P * V];
    each<R>(LAMBDA(r) { each<P * V>(LAMBDA(v) { sums[r][v] = (vf){}; }); });
#pragma GCC unroll 4
    for (int64_t m = 0; m < rows; m++, a += PANEL, b += PANEL) {
        vf line[P * V];
        each<P * V>(LAMBDA(i) { line[i] = load(b + i / V * b_stride + i % V * VL); });
        each<R>(LAMBDA(r) { add_products<Unit, P * V>(sums[r], a + r, line); });
    }
    each<R>(LAMBDA(r) {
        each<P * V>(LAMBDA(i) {
            float* to = c + i / V * c_stride + r * PANEL + i % V * VL;
            store(to, load(to) + sums[r][i]);
        });
    });
}

template <class Unit, int R, int V>
INLINE void outer_rows(const float* a, const float* b, int64_t rows, float* c, int first) {
    outer_tile<Unit, R, 1, V>(a + first, b, 0, rows, c + first * PANEL, 0);
}

// c[16][16] += transpose(a[rows][16]) b[rows][16], of which `columns` (1 .. 16) columns of b are wanted. Both lie as right
// operands do, and rows are counted in words.
template <class Unit = Floats>
inline __attribute__((noinline)) void outer(const float* a, const float* b, int64_t rows, int64_t columns, float* c) {
    if constexpr (VL == 16) {
        outer_rows<Unit, 16, 1>(a, b, rows, c, 0);
    } else if constexpr (VL == 8) {
        if (columns > VL) {
            outer_rows<Unit, 6, 2>(a, b, rows, c, 0);
            outer_rows<Unit, 5, 2>(a, b, rows, c, 6);
            outer_rows<Unit, 5, 2>(a, b, rows, c, 11);
        } else {
            outer_rows<Unit, 8, 1>(a, b, rows, c, 0);
            outer_rows<Unit, 8, 1>(a, b, rows, c, 8);
        }
    } else if constexpr (REGISTERS == 32) {
        outer_rows<Unit, 6, 4>(a, b, rows, c, 0);
        outer_rows<Unit, 5, 4>(a, b, rows, c, 6);
        outer_rows<Unit, 5, 4>(a, b, rows, c, 11);
    } else {
        for (int r = 0; r < PANEL; r += 2) outer_rows<Unit, 2, 4>(a, b, rows, c, r);
    }
}

// c[16][columns] += transpose(a[rows][16]) b[rows][columns]; panels of b and of c are so far apart.
template <class Unit = Floats>
inline __attribute__((noinline)) void outers(const float* a, const float* b, int64_t b_stride, int64_t rows,
                                             int64_t columns, float* c, int64_t c_stride) {
    for (int64_t left = columns; left > 0; left -= PANEL, b += b_stride, c += c_stride) {
        if constexpr (VL == 16)
            if (left > PANEL && !FACTORS_FROM_MEMORY) {  // two at once: ten loads a line where one at a time takes seventeen
                outer_tile<Unit, 8, 2, 1>(a, b, b_stride, rows, c, c_stride);
                outer_tile<Unit, 8, 2, 1>(a + 8, b, b_stride, rows, c + 8 * PANEL, c_stride);
                left -= PANEL, b += b_stride, c += c_stride;
                continue;
            }
        outer<Unit>(a, b, rows, least(PANEL, left), c);
    }
}

// Some of the `space` rows of a panel matrix as row-major (rows x columns), or transposed (columns x `count` rows).
inline void unpack(const float* from, int64_t space, Range rows, int64_t columns, float* w) {
    for (int64_t r = rows.begin; r < rows.end; r++)
        for (int64_t c = 0; c < columns; c++) w[r * columns + c] = from[(c / PANEL * space + r) * PANEL + c % PANEL];
}
inline void unpack_transposed(const float* from, int64_t space, Range rows, int64_t count, int64_t columns, float* w) {
    for (int64_t c = 0; c < columns; c++)
        for (int64_t r = rows.begin; r < rows.end; r++) w[c * count + r] = from[(c / PANEL * space + r) * PANEL + c % PANEL];
}
