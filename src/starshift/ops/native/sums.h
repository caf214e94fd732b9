// SPDX-License-Identifier: Apache-2.0
// Statistics of a channel that a mean far from zero does not spoil.
#pragma once
#include <cstdint>

// Sums around a value near the mean, of n values, as sums around another: to[0] those of (a - center), to[columns] those
// of their squares. In doubles no digits are lost to a mean that is large beside the deviation.
inline void move_sums(double one, double two, double n, double from_center, double center, double* to,
                      int64_t columns) {
    double away = from_center - center;
    to[0] += one + n * away;
    to[columns] += two + away * (2 * one + n * away);
}

// Sums of doubles of several threads, in their order.
inline void add_up(const double* parts, int64_t threads, int64_t n, double* to) {
    for (int64_t i = 0; i < n; i++) {
        to[i] = 0;
        for (int64_t t = 0; t < threads; t++) to[i] += parts[t * n + i];
    }
}
