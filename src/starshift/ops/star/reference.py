# SPDX-License-Identifier: Apache-2.0
"""The star operation in plain torch: definition, explicit backward, and the fused two-branch form.

Shapes: a branch is any shape; ``star_mlp`` takes x_N...C with weights (K, C), or x_NCHW with weights (K, C, 1, 1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from starshift.errors import StarshiftError, nearest

aten = torch.ops.aten
Forward = Callable[[Tensor], Tensor]
Backward = Callable[[Tensor, Tensor], Tensor]

# name: (act(x), gradient of act at x applied to g)
ACTIVATIONS: dict[str, tuple[Forward, Backward]] = {
    "none": (lambda x: x, lambda g, x: g),
    "relu": (F.relu, lambda g, x: aten.threshold_backward(g, x, 0)),
    "relu6": (F.relu6, lambda g, x: aten.hardtanh_backward(g, x, 0, 6)),
    "gelu": (F.gelu, aten.gelu_backward),
    "hardswish": (F.hardswish, aten.hardswish_backward),
    "silu": (F.silu, aten.silu_backward),
    "leaky_relu": (F.leaky_relu, lambda g, x: aten.leaky_relu_backward(g, x, 0.01, False)),
}
ACTIVATION_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}
"""By what compiled kernels know them (``native/activation.h``)."""
PLACEMENTS = ("first", "both", "product")


def check_activation(act: str) -> None:
    """
    Raises:
        StarshiftError: ``act`` is no name of an activation; names the nearest.
    """
    if act not in ACTIVATIONS:
        raise StarshiftError(
            f"unknown activation '{act}', there are: {', '.join(ACTIVATIONS)}.{nearest(act, ACTIVATIONS)}"
        )


def star(x1: Tensor, x2: Tensor, act: str, placement: str) -> Tensor:
    f, _ = ACTIVATIONS[act]
    if placement == "first":
        return f(x1) * x2
    if placement == "both":
        return f(x1) * f(x2)
    return f(x1 * x2)


def star_backward(grad: Tensor, x1: Tensor, x2: Tensor, act: str, placement: str) -> tuple[Tensor, Tensor]:
    f, df = ACTIVATIONS[act]
    if placement == "first":
        return df(grad * x2, x1), grad * f(x1)
    if placement == "both":
        return df(grad * f(x2), x1), df(grad * f(x1), x2)
    grad = df(grad, x1 * x2)
    return grad * x2, grad * x1


def star_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    wg: Tensor,
    bg: Tensor | None,
    act: str,
    placement: str,
) -> Tensor:
    """Branches in x's dtype; product and projection in :func:`_wide` dtype; the result in wg's dtype."""
    wide = _wide(wg.dtype)
    x1, x2 = _project(x, w1, b1), _project(x, w2, b2)
    product = star(x1.to(wide), x2.to(wide), act, placement)
    return _project(product, wg.to(wide), None if bg is None else bg.to(wide)).to(wg.dtype)


def star_mlp_backward(
    grad: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    wg: Tensor,
    act: str,
    placement: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (x, w1, b1, w2, b2, wg, bg). The branches are computed again rather than stored."""
    wide = _wide(wg.dtype)
    x1, x2 = _project(x, w1, b1).to(wide), _project(x, w2, b2).to(wide)
    product_grad, wg_grad, bg_grad = _project_backward(grad.to(wide), star(x1, x2, act, placement), wg.to(wide))
    x1_grad, x2_grad = star_backward(product_grad, x1, x2, act, placement)
    x_grad, w1_grad, b1_grad = _project_backward(x1_grad.to(x.dtype), x, w1)
    x_grad2, w2_grad, b2_grad = _project_backward(x2_grad.to(x.dtype), x, w2)
    return x_grad + x_grad2, w1_grad, b1_grad, w2_grad, b2_grad, wg_grad.to(wg.dtype), bg_grad.to(wg.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """float16 ends at 65504, which a product of two branches passes easily: there it is formed in float32."""
    return torch.float32 if dtype == torch.float16 else dtype


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias) if weight.dim() == 4 else F.linear(x, weight, bias)


def _project_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if weight.dim() == 4:
        return aten.convolution_backward(
            grad, x, weight, [weight.shape[0]], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, True]
        )
    rows = grad.reshape(-1, grad.shape[-1])
    return grad @ weight, rows.T @ x.reshape(-1, x.shape[-1]), rows.sum(0)
