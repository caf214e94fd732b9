// SPDX-License-Identifier: Apache-2.0
// Rows of an image as panels between borders of zeros, so that a displaced read needs no question about the border.
#pragma once
#include "../shift/gather.h"

// Pixels (y, x) with y in -reach_y .. rows + reach_y and x in -reach_x .. W + reach_x; outside the image they are zero.
// Matrix products write their results here, row after row, and some pixels more than there are: `trim` clears those.
class Padded {
  public:
    Padded(int64_t channels, int64_t rows, int64_t W, int64_t reach_y, int64_t reach_x)
        : line((round_up(W, WRITTEN) + 2 * reach_x) * PANEL), panel((rows + 2 * reach_y) * line), W_(W), reach_y_(reach_y),
          reach_x_(reach_x), room_(panel * panels(channels)), data_(room_), size_(panel * panels(channels)) {}
    void clear() const {
        for (int64_t i = 0; i < size_; i++) data_[i] = 0;
    }
    void clear_row(int64_t y) const {
        for (int64_t at = 0; at < size_; at += panel)
            for (int64_t i = 0; i < line; i++) data_[at + (y + reach_y_) * line + i] = 0;
    }
    void trim(int64_t p, int64_t y) const {
        for (float* pixel = at(p, y, W_); pixel < at(p, y, round_up(W_, WRITTEN)); pixel += PANEL)
            for (int i = 0; i < PANEL; i++) pixel[i] = 0;
    }
    float* at(int64_t p, int64_t y, int64_t x) const {
        return data_ + p * panel + (y + reach_y_) * line + (x + reach_x_) * PANEL;
    }

    const int64_t line, panel;  // floats from row to row, and from panel to panel

  private:
    int64_t W_, reach_y_, reach_x_;
    Scratch room_;
    float* data_;
    int64_t size_;
};

// What the lanes of one group read at n pixels that lie `step` floats apart: out(i, value). at: the group's vector at
// the first pixel, not displaced.
template <class Out>
INLINE void gather_padded(const Group<vi>& group, const float* at, int64_t line, int64_t step, int64_t n,
                          const Out& out) {
    auto taps = [&](auto count) __attribute__((always_inline)) {
        constexpr int N = decltype(count)::value;
        const float* from[N];
        vi lanes[N];
        for (int t = 0; t < N; t++) {
            from[t] = at + group.tap[t].dy * line + group.tap[t].dx * PANEL;
            lanes[t] = group.tap[t].lanes;
        }
        for (int64_t i = 0; i < n; i++) {
            vi value = (vi)load(from[0] + i * step) & lanes[0];
            for (int t = 1; t < N; t++) value |= (vi)load(from[t] + i * step) & lanes[t];
            out(i, (vf)value);
        }
    };
    switch (group.taps) {
        case 1: return taps(std::integral_constant<int, 1>{});
        case 2: return taps(std::integral_constant<int, 2>{});
        case 3: return taps(std::integral_constant<int, 3>{});
    }
    for (int64_t i = 0; i < n; i++) {
        vi value = {};
        for (int64_t t = 0; t < group.taps; t++) {
            const Tap<vi>& tap = group.tap[t];
            value |= (vi)load(at + tap.dy * line + tap.dx * PANEL + i * step) & tap.lanes;
        }
        out(i, (vf)value);
    }
}
