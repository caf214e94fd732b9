// SPDX-License-Identifier: Apache-2.0
// Bias and activation on one panel.
#pragma once
#include "activation.h"
#include "panels.h"

// h = act(h + b).
using Activate = void (*)(float* h, const float* b, int64_t rows);
template <class Act>
void activate(float* h, const float* b, int64_t rows) {
    for (int v = 0; v < PANEL; v += VL) {
        const vf bias = load(b + v);
        for (int64_t i = v; i < rows * PANEL; i += PANEL) store(h + i, Act::forward(load(h + i) + bias));
    }
}
