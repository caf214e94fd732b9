# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-untyped-defs=False
"""Activations and the star of two branches, with their gradients, inside Triton kernels; all in float32.

The formulas and their values at the kinks, and for NaN, are PyTorch's.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(x, ACT: tl.constexpr):
    if ACT == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif ACT == "relu6":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        x = tl.minimum(x, 6.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACT == "gelu":
        x = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif ACT == "hardswish":
        x = x * tl.where(x < -3, 0.0, tl.where(x > 3, 6.0, x + 3)) / 6
    elif ACT == "silu":
        x = x * _sigmoid(x)
    elif ACT == "leaky_relu":
        x = tl.where(x > 0, x, 0.01 * x)
    return x


@triton.jit
def activate_backward(g, x, ACT: tl.constexpr):
    """``act'(x) * g``."""
    if ACT == "relu":
        g = tl.where(x <= 0, 0.0, g)
    elif ACT == "relu6":
        g = tl.where((x <= 0) | (x >= 6), 0.0, g)
    elif ACT == "gelu":
        density = tl.exp(-0.5 * x * x) * 0.3989422804014327
        g = g * (0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * density)
    elif ACT == "hardswish":
        g = tl.where(x <= -3, 0.0, tl.where(x < 3, g * (x / 3 + 0.5), g))
    elif ACT == "silu":
        s = _sigmoid(x)
        g = g * s * (1 + x * (1 - s))
    elif ACT == "leaky_relu":
        g = tl.where(x > 0, g, 0.01 * g)
    return g


@triton.jit
def star(a, b, ACT: tl.constexpr, PLACEMENT: tl.constexpr):
    if PLACEMENT == "first":
        value = activate(a, ACT) * b
    elif PLACEMENT == "both":
        value = activate(a, ACT) * activate(b, ACT)
    else:
        value = activate(a * b, ACT)
    return value


@triton.jit
def star_backward(g, a, b, ACT: tl.constexpr, PLACEMENT: tl.constexpr):
    """Gradients of both branches."""
    if PLACEMENT == "first":
        ga = activate_backward(g * b, a, ACT)
        gb = g * activate(a, ACT)
    elif PLACEMENT == "both":
        ga = activate_backward(g * activate(b, ACT), a, ACT)
        gb = activate_backward(g * activate(a, ACT), b, ACT)
    else:
        h = activate_backward(g, a * b, ACT)
        ga = h * b
        gb = h * a
    return ga, gb


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))
