// SPDX-License-Identifier: Apache-2.0
// Reading at displaced addresses: vectors of neighbouring channels, each lane from where its channel's shift points.
//
// A vector of channels meets few displacements (a run has more channels than a vector has lanes, or the k * k
// displacements repeat). A tap is one of them, with the lanes that read there; the vector is the union over its taps of
// load(address of the tap) & lanes. A tap outside the image is left out, so its lanes are zero.
#pragma once
#include <type_traits>

#include "rows.h"

typedef uint16_t v16 __attribute__((vector_size(VL * 4)));  // 2-byte elements as they are stored

template <class V>
struct Tap {
    V lanes;
    int64_t dy, dx;
};

template <class V>
struct Group {  // of neighbouring channels: one vector
    int64_t channel, n;
    int64_t taps;
    const Tap<V>* tap;
};

// The taps of every group of channels. sign -1: the shift by the opposite displacements. overlap: the last group is a
// whole vector too, where there are channels enough for one, and shares channels with the group before.
template <class V>
class Table {
  public:
    static constexpr int LANES = sizeof(V) / sizeof(V{}[0]);

    Table(const int64_t* offsets, int64_t runs, int64_t channels, int sign, bool overlap)
        : count((channels + LANES - 1) / LANES), room_((channels + LANES) * WORDS + count * GROUP_WORDS),
          tap_(reinterpret_cast<Tap<V>*>((float*)room_)),
          group_(reinterpret_cast<Group<V>*>((float*)room_ + (channels + LANES) * WORDS)) {
        Scratch where(2 * channels);
        int32_t* dy = reinterpret_cast<int32_t*>((float*)where);
        int32_t* dx = dy + channels;
        for (int64_t run = 0, c = 0; run < runs; run++)
            for (int64_t i = 0; i < offsets[3 * run] && c < channels; i++, c++) {
                dy[c] = limited(sign * offsets[3 * run + 1]);
                dx[c] = limited(sign * offsets[3 * run + 2]);
            }
        Tap<V>* free = tap_;
        for (int64_t g = 0; g < count; g++) {
            int64_t first = g * LANES;
            if (overlap && first + LANES > channels) first = most(0, channels - LANES);
            Group<V>& group = group_[g];
            group = {first, least(LANES, channels - first), 0, free};
            for (int64_t lane = 0; lane < group.n; lane++) {
                int64_t c = first + lane, t = 0;
                reach = most(reach, dy[c] < 0 ? -dy[c] : dy[c]);
                reach_x = most(reach_x, dx[c] < 0 ? -dx[c] : dx[c]);
                while (t < group.taps && (free[t].dy != dy[c] || free[t].dx != dx[c])) t++;
                if (t == group.taps) {
                    free[t] = {V{}, dy[c], dx[c]};
                    group.taps++;
                }
                free[t].lanes[lane] = -1;
            }
            free += group.taps;
        }
    }
    const Group<V>& operator[](int64_t g) const { return group_[g]; }

    const int64_t count;
    int64_t reach = 0, reach_x = 0;  // the largest |dy| and |dx|

  private:
    // No image reaches so far, and sums of what is further would overflow.
    static int32_t limited(int64_t displacement) { return (int32_t)most(-FURTHEST, least(displacement, FURTHEST)); }

    static constexpr int64_t FURTHEST = 1 << 30;
    static constexpr int64_t WORDS = sizeof(Tap<V>) / 4, GROUP_WORDS = sizeof(Group<V>) / 4;
    Scratch room_;
    Tap<V>* tap_;
    Group<V>* group_;
};

template <class V>
INLINE V load_lanes(const void* from) {
    V value;
    memcpy(&value, from, sizeof value);
    return value;
}

// f(their number, a constant) where a group has few taps, as most have; else false.
template <class F>
INLINE bool with_few(int64_t taps, const F& f) {
    switch (taps) {
        case 1: f(std::integral_constant<int, 1>{}); return true;
        case 2: f(std::integral_constant<int, 2>{}); return true;
        case 3: f(std::integral_constant<int, 3>{}); return true;
    }
    return false;
}

// Along a row: position p of the result reads position (p * times + displacement) / by, where that is whole.
struct Steps {
    int64_t times = 1, by = 1;
};

// One row of the result for one group: out(x, value) for x in 0 .. width. row(dy) is the address
// of the group's first channel in the first pixel of the row displaced so, or null outside; pixels lie `pixel` elements
// apart, `size` of them in a row; load(address) is a V. Of by > 1, every by-th x has the same taps, which read neighbours.
template <class V, class Row, class Load, class Out>
INLINE void gather(const Group<V>& group, int64_t width, int64_t size, int64_t pixel, Steps steps, const Row& row,
                   const Load& load, const Out& every) {
    using Address = decltype(row(0));
    Address from[Table<V>::LANES];
    V lanes[Table<V>::LANES];
    int64_t dx[Table<V>::LANES];
    const int64_t step = steps.times * pixel;
    for (int64_t first = 0; first < least(steps.by, width); first++) {
        const int64_t count = steps.by == 1 ? width : (width - first + steps.by - 1) / steps.by;
        int64_t taps = 0, begin = 0, end = count;
        for (int64_t t = 0; t < group.taps; t++) {
            const Tap<V>& tap = group.tap[t];
            int64_t start = first * steps.times + tap.dx;
            if (steps.by != 1) {
                if (start % steps.by) continue;
                start /= steps.by;
            }
            from[taps] = row(tap.dy);
            if (!from[taps]) continue;
            lanes[taps] = tap.lanes;
            dx[taps] = start;
            begin = most(begin, start < 0 ? (-start + steps.times - 1) / steps.times : 0);
            end = least(end, size - 1 - start < 0 ? 0 : (size - 1 - start) / steps.times + 1);
            taps++;
        }
        if (end < begin) begin = end = 0;
        auto out = [&](int64_t i, V value) __attribute__((always_inline)) { every(first + i * steps.by, value); };
        auto border = [&](int64_t i) {
            V value = {};
            for (int64_t t = 0; t < taps; t++) {
                const int64_t at = i * steps.times + dx[t];
                if (at >= 0 && at < size) value |= load(from[t] + at * pixel) & lanes[t];
            }
            out(i, value);
        };
        for (int64_t i = 0; i < begin; i++) border(i);
        auto interior = [&](auto number) {
            constexpr int N = decltype(number)::value;
            Address at[N];
            for (int t = 0; t < N; t++) at[t] = from[t] + begin * step + dx[t] * pixel;
            for (int64_t i = begin; i < end; i++) {
                V value = load(at[0]) & lanes[0];
                for (int t = 1; t < N; t++) value |= load(at[t]) & lanes[t];
                for (int t = 0; t < N; t++) at[t] += step;
                out(i, value);
            }
        };
        if (!with_few(taps, interior))
            for (int64_t i = begin; i < end; i++) {
                V value = {};
                for (int64_t t = 0; t < taps; t++) value |= load(from[t] + i * step + dx[t] * pixel) & lanes[t];
                out(i, value);
            }
        for (int64_t i = end; i < count; i++) border(i);
    }
}
