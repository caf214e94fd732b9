# SPDX-License-Identifier: Apache-2.0
"""A trained sparse shift made a plain one: exactly the same network, on the kernels of the fixed shift."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from starshift.errors import StarshiftError
from starshift.layers.csc import CSC, PreActCSC
from starshift.layers.learned_shift import LearnedShift2d, LearnedShiftConv2d
from starshift.layers.shift import Shift2d, ShiftConv2d
from starshift.ops.shift.offsets import Offsets, grouped_offsets, merge_runs, per_channel


def fix_shifts(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose learned sparse shifts are fixed shifts by the displacements they learned.

    The logits are equal. Middle channels are put into the order of their displacements, since a few long runs are what
    kernels want: rows of the convolution before the shift, its batch norm, and columns of the convolution after it.
    ``create_model(..., offsets=module_offsets(fixed))`` makes the same network anew for its weights.

    Raises:
        StarshiftError: an active shift, which stands between pixels.
    """
    fixed = deepcopy(model)
    for module in fixed.modules():
        if isinstance(module, (CSC, PreActCSC)):
            _sort(module)
    for module in list(fixed.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LearnedShift2d):
                setattr(module, name, Shift2d(merge_runs(child.offsets())))
            elif isinstance(child, LearnedShiftConv2d):
                setattr(module, name, _fixed_conv(child))
    return fixed


def module_offsets(model: nn.Module) -> list[list[list[int]]]:
    """Runs [channels, dy, dx] of the fixed shift in each module of a ShiftResNet or ShiftNet, in order.

    Plain lists, as ``create_model``'s option ``offsets`` takes them and YAML and JSON keep them.

    Raises:
        StarshiftError: SC² modules whose first shift is not grouped (it was learned, or is interleaved): the option
            has no word for it.

    Example:
        >>> from starshift.layers import module_offsets
        >>> from starshift.models import create_model
        >>> model = create_model("shiftresnet20", offsets=[[[16, 0, 0]]] * 3 + [[[32, 0, 1]]] * 3 + [[[64, 1, 0]]] * 3)
        >>> module_offsets(model)[3]
        [[32, 0, 1]]
    """
    modules = [m for m in model.modules() if isinstance(m, (CSC, PreActCSC))]
    for first in (m.conv1.conv if isinstance(m, CSC) else m.conv1 for m in modules):
        if isinstance(first, ShiftConv2d) and not _is_grouped(first.offsets):
            raise StarshiftError(
                "the first shifts of these SC² modules are not grouped, and the option 'offsets' gives only the second "
                "ones: keep the module itself (torch.export, ONNX) instead of making the network anew"
            )
    return [[list(run) for run in shift.offsets] for m in modules if isinstance(shift := middle_shift(m), FIXED)]


def _is_grouped(offsets: Offsets) -> bool:
    channels, reach = sum(n for n, _, _ in offsets), max(max(abs(dy), abs(dx)) for _, dy, dx in offsets)
    dilations = [d for d in range(1, reach + 1) if reach % d == 0] or [1]
    return any(offsets == grouped_offsets(channels, 2 * (reach // d) + 1, d) for d in dilations)


FIXED = (Shift2d, ShiftConv2d)


def middle_shift(module: CSC | PreActCSC) -> nn.Module:
    """The layer that shifts a module's middle channels: a shift, or a convolution with the shift in it."""
    if isinstance(module, CSC):
        return module.conv2.conv
    return module.conv2 if isinstance(module.shift, nn.Identity) else module.shift


def _sort(module: CSC | PreActCSC) -> None:
    """Put the middle channels of a module with a learned shift into the order of its displacements."""
    layer = middle_shift(module)
    shift = layer.shift if isinstance(layer, LearnedShiftConv2d) else layer
    if not isinstance(shift, LearnedShift2d):
        return
    displacements = per_channel(shift.offsets())
    order = torch.tensor(sorted(range(len(displacements)), key=displacements.__getitem__))
    before: Any = module.conv1.conv if isinstance(module, CSC) else module.conv1
    norm: Any = module.conv1.bn if isinstance(module, CSC) else module.norm2
    after: Any = module.conv2.conv if isinstance(module, CSC) else module.conv2
    tensors: list[Tensor | None] = [shift.displacement, before.weight, before.bias]
    for tensor in (*tensors, *norm.parameters(), *norm.buffers()):
        if tensor is not None and tensor.dim() > 0:
            tensor.data = tensor.data[order]
    after.weight.data = after.weight.data[:, order]


def _fixed_conv(conv: LearnedShiftConv2d) -> ShiftConv2d:
    offsets = merge_runs(conv.shift.offsets())
    fixed = ShiftConv2d(conv.in_channels, conv.out_channels, offsets, conv.stride[0], conv.bias is not None)
    fixed.weight, fixed.bias = conv.weight, conv.bias
    return fixed.train(conv.training)
