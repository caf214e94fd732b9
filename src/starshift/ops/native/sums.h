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
