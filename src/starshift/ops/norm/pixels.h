// SPDX-License-Identifier: Apache-2.0
// A channels-last tensor as one long row of values whose channels repeat, walked in whole vectors.
#pragma once
#include <type_traits>

#include "scratch.h"
#include "simd.h"

// `fold` pixels side by side make a line: its width is a whole number of vectors (C = 20: two pixels, five vectors of
// 8), and long enough that a loop over it pays. What belongs to a channel is spread over the line once.
struct Pixels {
    static constexpr int64_t SHORTEST = 16 * VL, LINES = 32;  // lines in a block
    int64_t count, channels, width, threads;

    Pixels(int64_t count, int64_t channels, int64_t threads) : count(count), channels(channels), width(channels) {
        while (width % VL || width < SHORTEST) width += channels;
        if (width * 8 > values()) this->threads = 1;
        else this->threads = threads;
    }
    int64_t values() const { return count * channels; }
    int64_t blocks() const { return (values() + LINES * width - 1) / (LINES * width); }
    Range block(int64_t i) const {
        int64_t end = (i + 1) * LINES * width;
        return {i * LINES * width, end < values() ? end : values()};
    }

    // line[i] = f(channel of i).
    template <class F>
    void spread(float* line, const F& f) const {
        for (int64_t c = 0; c < channels; c++) line[c] = f(c);
        for (int64_t i = channels; i < width; i++) line[i] = line[i - channels];
    }
};

// f(whole, begin, n) for every line, in the order in which they lie in memory, which is the order that prefetching
// follows; whole is std::true_type, or std::false_type for a last line that is cut.
template <class F>
INLINE void each_line(Range values, int64_t width, const F& f) {
    int64_t i = values.begin;
    for (; i + width <= values.end; i += width) f(std::true_type{}, i, width);
    if (i < values.end) f(std::false_type{}, i, values.end - i);
}
