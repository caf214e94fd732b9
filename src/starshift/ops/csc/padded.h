// SPDX-License-Identifier: Apache-2.0
// Rows of an image as panels between borders of zeros, so that a displaced read needs no question about the border.
#pragma once
#include "../shift/gather.h"

// Pixels (y, x) with y in -reach_y .. rows + reach_y and x in -reach_x .. W + reach_x; outside the image they are zero.
// Matrix products write their results here, row after row, and some pixels more than there are: `trim` clears those.
template <class T>
class Padded {
  public:
    Padded(int64_t channels, int64_t rows, int64_t W, int64_t reach_y, int64_t reach_x)
        : line((round_up(W, WRITTEN) + 2 * reach_x) * PANEL), panel((rows + 2 * reach_y) * line), W_(W), reach_y_(reach_y),
          reach_x_(reach_x), size_(panel * panels(channels)), room_((size_ * sizeof(T) + 3) / 4),
          data_(reinterpret_cast<T*>((float*)room_)) {
        memset((void*)data_, 0, size_ * sizeof(T));
    }
    void clear_row(int64_t y) const {
        for (int64_t at = 0; at < size_; at += panel)
            memset((void*)(data_ + at + (y + reach_y_) * line), 0, line * sizeof(T));
    }
    void trim(int64_t p, int64_t y) const {
        memset((void*)at(p, y, W_), 0, (round_up(W_, WRITTEN) - W_) * PANEL * sizeof(T));
    }
    T* at(int64_t p, int64_t y, int64_t x) const {
        return data_ + p * panel + (y + reach_y_) * line + (x + reach_x_) * PANEL;
    }

    const int64_t line, panel;  // numbers from row to row, and from panel to panel

  private:
    int64_t W_, reach_y_, reach_x_, size_;
    Scratch room_;
    T* data_;
};

// What is read at one address: a vector of floats, or of bfloat16 a panel's line of one pixel or of two neighbours. `of`
// says which lanes of it a tap has.
template <class T, int PIXELS>
struct Lanes {
    using Vector = vi;
    static INLINE Vector of(vi lanes) { return lanes; }
};
#ifdef HAS_PAIRS
template <>
struct Lanes<bf16, 1> {
    typedef int16_t Vector __attribute__((vector_size(PANEL * 2)));
    static INLINE Vector of(vi lanes) { return __builtin_convertvector(lanes, Vector); }
};
template <>
struct Lanes<bf16, 2> {
    typedef int16_t Vector __attribute__((vector_size(PANEL * 4)));
    static INLINE Vector of(vi lanes) {
        const auto half = Lanes<bf16, 1>::of(lanes);
        Vector both;
        memcpy(&both, &half, sizeof half);
        memcpy((char*)&both + sizeof half, &half, sizeof half);
        return both;
    }
};
#endif

// What the lanes of one group read at n places that lie `step` numbers apart, PIXELS neighbours at each: out(i, value). at:
// the group's first place, not displaced.
template <int PIXELS, class T, class Out>
INLINE void gather_padded(const Group<vi>& group, const T* at, int64_t line, int64_t step, int64_t n, const Out& out) {
    using V = typename Lanes<T, PIXELS>::Vector;
    auto taps = [&](auto count) __attribute__((always_inline)) {
        constexpr int N = decltype(count)::value;
        const T* from[N];
        V lanes[N];
        for (int t = 0; t < N; t++) {
            from[t] = at + group.tap[t].dy * line + group.tap[t].dx * PANEL;
            lanes[t] = Lanes<T, PIXELS>::of(group.tap[t].lanes);
        }
        for (int64_t i = 0; i < n; i++) {
            V value = load_lanes<V>(from[0] + i * step) & lanes[0];
            for (int t = 1; t < N; t++) value |= load_lanes<V>(from[t] + i * step) & lanes[t];
            out(i, value);
        }
    };
    if (with_few(group.taps, taps)) return;
    V lanes[Table<vi>::LANES];
    for (int64_t t = 0; t < group.taps; t++) lanes[t] = Lanes<T, PIXELS>::of(group.tap[t].lanes);
    for (int64_t i = 0; i < n; i++) {
        V value = {};
        for (int64_t t = 0; t < group.taps; t++) {
            const Tap<vi>& tap = group.tap[t];
            value |= load_lanes<V>(at + tap.dy * line + tap.dx * PANEL + i * step) & lanes[t];
        }
        out(i, value);
    }
}
