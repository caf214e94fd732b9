// SPDX-License-Identifier: Apache-2.0
// Between tensors, whose rows are pixels (channels last), and panels.
#pragma once
#include <type_traits>

#include "panels.h"
#include "sums.h"

// A tensor as it is read: scale[c] * x + other_scale[c] * other + shift[c]; null pointers leave a factor or term out.
template <class T>
struct Rows {
    const T* x;
    const T* other;
    const float *scale, *other_scale, *shift;
    int64_t columns;

    bool plain() const { return !other && !scale && !shift; }

    INLINE vf at(int64_t row, int64_t column, int n) const {
        int64_t i = row * columns + column;
        vf a = load_n(x + i, n);
        if (plain()) return a;
        if (scale) a *= load_n(scale + column, n);
        if (shift) a += load_n(shift + column, n);
        if (other) a += load_n(other_scale + column, n) * load_n(other + i, n);
        return a;
    }
};

// Rows first .. first + rows into panels of `space` rows each; the rows behind them up to `space` become zero. With sums
// (one float a column, panels(columns) * 16 of them), each column's sum is added to it.
template <class T>
inline void pack_rows(const Rows<T>& from, int64_t first, int64_t rows, int64_t space, float* to,
                      float* sums = nullptr) {
    for (int64_t p = 0; p < panels(from.columns); p++)
        for (int v = 0; v < VECTORS; v++) {
            int64_t column = p * PANEL + v * VL;
            int n = (int)most(0, least(VL, from.columns - column));
            float* line = to + p * space * PANEL + v * VL;
            vf total = {};
            if (n == VL && from.plain()) {
                const T* x = from.x + first * from.columns + column;
                for (int64_t r = 0; r < rows; r++, line += PANEL, x += from.columns) {
                    vf a = load(x);
                    store(line, a);
                    total += a;
                }
            } else if (n == VL) {
                for (int64_t r = 0; r < rows; r++, line += PANEL) {
                    vf a = from.at(first + r, column, VL);
                    store(line, a);
                    total += a;
                }
            } else {
                for (int64_t r = 0; r < rows; r++, line += PANEL) {
                    vf a = n ? from.at(first + r, column, n) : (vf){};
                    store(line, a);
                    total += a;
                }
            }
            for (int64_t r = rows; r < space; r++, line += PANEL) store(line, (vf){});
            if (sums) store(sums + column, load(sums + column) + total);
        }
}

enum Side { LEFT = 1, RIGHT = 2, BOTH = 3 };

// A panel matrix of `space` rows (even) and `count` panels as left and as right operand of products, or as one of the two.
// Of floats both are the same memory.
template <class Unit>
class Operand {
    static_assert(!Unit::PAIRS || VL == PANEL, "two rows of a panel are two vectors");
    Scratch left_, right_;

  public:
    const int64_t panel;  // words
    Operand(int64_t space, int64_t count, Side sides)
        : left_(!Unit::PAIRS || sides & LEFT ? space * PANEL / Unit::IN_WORD * count : 0),
          right_(Unit::PAIRS && sides & RIGHT ? space * PANEL / Unit::IN_WORD * count : 0),
          panel(space * PANEL / Unit::IN_WORD) {}
    float* left(int64_t p) const { return left_ ? left_ + p * panel : nullptr; }
    // Where panel p may be made of floats, which `put` or `panel_to` then brings here: elsewhere, or in place.
    float* made(int64_t p, float* elsewhere) const { return Unit::PAIRS ? elsewhere : left(p); }
    float* right(int64_t p) const { return !Unit::PAIRS ? left(p) : right_ ? right_ + p * panel : nullptr; }

    // Into a panel of which one side may be null, from its column v on: the rows from r on that one word of a right
    // operand holds.
    static INLINE void put(float* left, float* right, int64_t r, int64_t v, const vf* rows) {
        if constexpr (!Unit::PAIRS) {
            store(left + r * PANEL + v, rows[0]);
        } else {
            vf lines, pairs;
            Unit::join(rows[0], rows[1], lines, pairs);
            if (left) store(left + r * PANEL / Unit::IN_WORD, lines);
            if (right) store(right + r * PANEL / Unit::IN_WORD, pairs);
        }
    }
};

// Sixteen columns of rows of bfloat16, `columns` apart, into a panel of pairs of which one side may be null. Returns their
// sums.
template <class Unit>
INLINE vf pack_lines(const bf16* x, int64_t columns, int64_t rows, float* left, float* right) {
    vf total = {};
    for (int64_t r = 0; r < rows; r += 2, x += 2 * columns) {
        const vf lines = Unit::lines(x, r + 1 < rows ? x + columns : nullptr), words = Unit::paired(lines);
        if (left) store(left + r * PANEL / Unit::IN_WORD, lines);
        if (right) store(right + r * PANEL / Unit::IN_WORD, words);
        total = Unit::add_product(total, words, Unit::ones());
    }
    return total;
}

// pack_rows into what sides it has.
template <class Unit, class T>
inline void pack_operand(const Rows<T>& from, int64_t first, int64_t rows, int64_t space, const Operand<Unit>& to,
                         float* sums = nullptr) {
    if constexpr (!Unit::PAIRS) {
        pack_rows(from, first, rows, space, to.left(0), sums);
    } else {
        for (int64_t p = 0; p < panels(from.columns); p++) {
            const int64_t column = p * PANEL;
            const int n = (int)least(VL, from.columns - column);
            float *left = to.left(p), *right = to.right(p);
            vf total = {};
            auto each = [&](auto read) __attribute__((always_inline)) {
                for (int64_t r = 0; r < rows; r += 2) {
                    const vf two[2] = {read(first + r), r + 1 < rows ? read(first + r + 1) : (vf){}};
                    total += two[0] + two[1];
                    to.put(left, right, r, 0, two);
                }
            };
            if (n == VL && from.plain())  // what is to be multiplied as it is
                total = pack_lines<Unit>(from.x + first * from.columns + column, from.columns, rows, left, right);
            else if (n == VL)
                each([&](int64_t r) __attribute__((always_inline)) { return from.at(r, column, VL); });
            else
                each([&](int64_t r) __attribute__((always_inline)) { return from.at(r, column, n); });
            const vf none[2] = {};
            for (int64_t r = (rows + 1) / 2 * 2; r < space; r += 2) to.put(left, right, r, 0, none);
            if (sums) store(sums + column, load(sums + column) + total);
        }
    }
}

// A panel of floats into one of an operand; either side may be null. Of floats it is the same one.
template <class Unit>
inline void panel_to(const float* from, int64_t rows, float* left, float* right) {
    if constexpr (Unit::PAIRS)
        for (int64_t r = 0; r < rows; r += 2) {
            const vf two[2] = {load(from + r * PANEL), r + 1 < rows ? load(from + (r + 1) * PANEL) : (vf){}};
            Operand<Unit>::put(left, right, r, 0, two);
        }
}

// Zero in a left operand's panel from its column `known` on: what was made of padding is not a number where the input is
// infinite, and would be so in all columns of a product.
template <class Unit>
inline void clear_padding(float* left, int64_t rows, int64_t known) {
    for (int64_t r = 0; r < rows && known < PANEL; r++)
        for (int64_t c = known; c < PANEL; c++) put_number<Unit>(left + (r * PANEL + c) / Unit::IN_WORD, c % Unit::IN_WORD, 0);
}

// A panel of a left operand as one of a right operand, which of floats is the same one. Returns the sums of its columns (of
// floats none).
template <class Unit>
inline vf lines_to_right(const float* left, int64_t rows, float* right) {
    if constexpr (Unit::PAIRS) return pack_lines<Unit>(reinterpret_cast<const bf16*>(left), PANEL, rows, nullptr, right);
    return (vf){};
}

// Fetch part `index` of `parts` of rows first .. first + rows into the second cache: what stands in memory arrives while
// the rows before are worked on. TO_WRITE: they are to be written.
template <bool TO_WRITE = false, class T>
INLINE void fetch_part(const T* x, int64_t columns, int64_t first, int64_t rows, int64_t index, int64_t parts) {
    if (rows <= 0 || !x) return;
    const char* base = (const char*)(x + first * columns);
    int64_t lines = (rows * columns * (int64_t)sizeof(T) + 63) / 64;
    for (int64_t i = lines * index / parts; i < lines * (index + 1) / parts; i++) __builtin_prefetch(base + i * 64, TO_WRITE, 2);
}

// Panels to rows of a tensor. With sums ([2][columns] doubles): adds, for every column, the sums of (a - center) and of
// (a - center)^2, or with a partner tensor those of a and a * (partner - center).
template <class T>
inline void unpack_rows(const float* from, int64_t space, int64_t first, int64_t rows, int64_t columns, T* to,
                        double* sums = nullptr, const float* center = nullptr, const T* partner = nullptr) {
    for (int64_t column = 0; column < columns; column += VL) {
        int n = (int)least(VL, columns - column);
        const float* line = from + column / PANEL * space * PANEL + column % PANEL;
        T* at = to + first * columns + column;
        vf middle = center ? load_n(center + column, n) : (vf){};
        vf one = {}, two = {};
        if (!sums) {
            for (int64_t r = 0; r < rows; r++, line += PANEL, at += columns) store_n(at, load(line), n);
        } else if (partner) {
            const T* other = partner + first * columns + column;
            for (int64_t r = 0; r < rows; r++, line += PANEL, at += columns, other += columns) {
                vf a = load(line);
                store_n(at, a, n);
                one += a;
                two += a * (load_n(other, n) - middle);
            }
            for (int i = 0; i < n; i++) {
                sums[column + i] += one[i];
                sums[columns + column + i] += two[i];
            }
        } else if (rows > 0) {
            vf near = load(line);  // the first row is nearer to the mean than zero is
            for (int64_t r = 0; r < rows; r++, line += PANEL, at += columns) {
                vf a = load(line), away = a - near;
                store_n(at, a, n);
                one += away;
                two += away * away;
            }
            for (int i = 0; i < n; i++)
                move_sums(one[i], two[i], (double)rows, near[i], middle[i], sums + column + i, columns);
        }
    }
}

// Rows of x into panels of `space` rows, read in the order in which they lie. Adds up columns.
template <class T>
inline void pack_in_order(const T* x, int64_t columns, int64_t rows, int64_t space, float* to, float* sums) {
    const int64_t whole = columns / VL * VL;
    const int rest = (int)(columns - whole);
    for (int64_t r = 0; r < rows; r++, x += columns) {
        float* line = to + r * PANEL;
        auto put = [&](int64_t c, vf a) __attribute__((always_inline)) {
            store(line + c / PANEL * space * PANEL + c % PANEL, a);
            if (sums) store(sums + c, load(sums + c) + a);
        };
        for (int64_t c = 0; c < whole; c += VL) put(c, load(x + c));
        if (rest) put(whole, load_part(x + whole, rest));
        for (int64_t c = whole + (rest ? VL : 0); c < panels(columns) * PANEL; c += VL) put(c, (vf){});
    }
}

// Panels back into rows, written in the order in which they lie, with a bias (null: none) of whole panels. past_caches: see
// simd.h; the rows consist of whole lines then.
template <class T>
inline void unpack_in_order(const float* from, int64_t space, int64_t rows, int64_t columns, const float* bias, T* to,
                            bool past_caches = false) {
    const int64_t whole = columns / VL * VL;
    const int rest = (int)(columns - whole);
    for (int64_t r = 0; r < rows; r++, to += columns) {
        const float* line = from + r * PANEL;
        auto get = [&](int64_t c) __attribute__((always_inline)) {
            const vf a = load(line + c / PANEL * space * PANEL + c % PANEL);
            return bias ? a + load(bias + c) : a;
        };
        if constexpr (std::is_same_v<T, float>) {
            if (past_caches) {
                for (int64_t c = 0; c < whole; c += VL) stream(to + c, get(c));
                continue;
            }
        }
        for (int64_t c = 0; c < whole; c += VL) store(to + c, get(c));
        if (rest) store_part(to + whole, get(whole), rest);
    }
}
