# SPDX-License-Identifier: Apache-2.0
"""The shift operation: every channel moves as a whole by its own displacement (Wu et al., CVPR 2018, section 3)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from starshift.errors import StarshiftError
from starshift.ops._operator import Operator, autocast_dtype, cast, check_bias
from starshift.ops.shift import reference
from starshift.ops.shift.offsets import (
    Offsets,
    flatten,
    grouped_offsets,
    interleaved_offsets,
    negate,
    offsets_permutation,
    unflatten,
)

__all__ = ["Offsets", "grouped_offsets", "interleaved_offsets", "offsets_permutation", "shift2d", "shift_conv2d"]

_shift2d = Operator("shift2d", "(Tensor x, int[] offsets) -> Tensor", reference.shift2d)
_shift_conv2d = Operator(
    "shift_conv2d",
    "(Tensor x, Tensor weight, Tensor? bias, int[] offsets, int stride) -> Tensor",
    reference.shift_conv2d,
)
_shift_conv2d_backward = Operator(
    "shift_conv2d_backward",
    "(Tensor grad, Tensor x, Tensor weight, int[] offsets, int stride) -> (Tensor, Tensor, Tensor)",
    reference.shift_conv2d_backward,
)


def shift2d(x: Tensor, offsets: Offsets) -> Tensor:
    """Move each run of channels: ``out[n, c, y, x] = in[n, c, y + dy(c), x + dx(c)]``, zero outside the image.

    No parameter, no multiplication (Wu et al., CVPR 2018, equation 4). The gradient is the shift by the opposite
    displacements.

    Args:
        x: (N, C, H, W).
        offsets: runs (channels, dy, dx) in pixels that add up to C channels; see :func:`grouped_offsets`.

    Returns:
        (N, C, H, W).

    Raises:
        StarshiftError: x is not 4-D, or the runs do not add up to its channels.

    Example:
        >>> import torch
        >>> from starshift.ops import shift2d
        >>> shift2d(torch.arange(1.0, 4.0).view(1, 1, 1, 3), ((1, 0, 1),)).flatten().tolist()
        [2.0, 3.0, 0.0]
    """
    _check("shift2d", x, offsets)
    return _shift2d(x, flatten(offsets))


def shift_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, offsets: Offsets, stride: int = 1) -> Tensor:
    """Shift, then a 1x1 convolution, as one operator: a spatial convolution with one tap for each input channel.

    A kernel can read its inputs at displaced addresses, so that the shift costs nothing ("address shift",
    arXiv 1809.08458).

    Args:
        x: (N, C, H, W). weight: (K, C, 1, 1). bias: (K,) or None.
        offsets: as in :func:`shift2d`.
        stride: of the 1x1 convolution, in pixels.

    Returns:
        (N, K, ceil(H / stride), ceil(W / stride)).

    Raises:
        StarshiftError: as :func:`shift2d`, or a weight that is not (K, C, 1, 1), or a stride below 1.
    """
    _check("shift_conv2d", x, offsets)
    if weight.dim() != 4 or weight.shape[1:] != (x.shape[1], 1, 1) or stride < 1:
        raise StarshiftError(
            f"shift_conv2d: weight must be (K, {x.shape[1]}, 1, 1) and stride >= 1; got {tuple(weight.shape)}, {stride}"
        )
    check_bias("shift_conv2d", bias, weight)
    x, weight, bias = cast(autocast_dtype(x), x, weight, bias)
    return _shift_conv2d(x, weight, bias, flatten(offsets), stride)


def _check(name: str, x: Tensor, offsets: Offsets) -> None:
    channels = sum(n for n, _, _ in offsets)
    if x.dim() != 4 or x.shape[1] != channels:
        raise StarshiftError(
            f"{name}: offsets for {channels} channels need x of (N, {channels}, H, W), not {tuple(x.shape)}"
        )


def _setup_shift2d(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.offsets = flatten(negate(unflatten(inputs[1])))


def _backward_shift2d(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _shift2d(grad, ctx.offsets), None


def _setup_shift_conv2d(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.offsets, ctx.stride = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _backward_shift_conv2d(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, bias = _shift_conv2d_backward(grad, *ctx.saved_tensors, ctx.offsets, ctx.stride)
    return x, weight, bias if ctx.has_bias else None, None, None


_shift2d.differentiable(_setup_shift2d, _backward_shift2d, twice=True)
_shift_conv2d.differentiable(_setup_shift_conv2d, _backward_shift_conv2d)
