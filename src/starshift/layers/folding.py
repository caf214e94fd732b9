# SPDX-License-Identifier: Apache-2.0
"""Batch norm folded into the layers around it: in eval mode it is an affine map with constant coefficients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

Run = Callable[[Tensor], Tensor]
_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class Foldable(nn.Module):
    """A module that can merge its own batch norms into its other weights."""

    def fold(self) -> None:
        """Merge, in place. Only this module's own; its children are asked separately."""
        raise NotImplementedError

    def prepare(self) -> Run | None:
        """Once folded: the forward with weights laid out for many calls (x: float32 or bfloat16, without gradients,
        on the CPU). None: its layers do."""
        return None


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in eval mode whose batch norms are merged into the weights beside them. The logits are equal.

    Every batch norm that follows a convolution is merged into it, and StarNet's last one, which stands before the mean
    pool, into the classifier. What cannot be merged exactly stays: in ShiftNet's pre-activation modules a norm stands
    before the convolution or after the shift, whose zeros at the border are not shifted by the norm's bias. Modules of
    other libraries are folded where an ``nn.Sequential`` has a convolution directly followed by its norm, and otherwise
    left alone.

    Only the logits are equal: where a classifier took a norm in, ``forward_features`` returns features before that
    norm.
    """
    folded = deepcopy(model).eval()
    uses = Counter(id(module) for _, module in folded.named_modules(remove_duplicate=False))
    for module in list(folded.modules()):
        if isinstance(module, Foldable):
            if _on_its_own(module, uses):
                module.fold()
        elif type(module).forward is nn.Sequential.forward:
            _fold_sequential(module, uses)
    return folded


def fuse_conv_bn_(conv: nn.Conv2d | nn.Sequential, bn: nn.Module) -> bool:
    """Merge an eval-mode batch norm that follows ``conv`` into the convolution's weight and bias, in place.

    Of a sequence of convolutions (one in factors) the last takes it.

    Returns:
        False, with nothing done, where ``bn`` is no batch norm or keeps no running statistics.
    """
    if type(bn) not in _BATCH_NORMS or bn.running_mean is None:
        return False
    if isinstance(conv, nn.Sequential):
        return fuse_conv_bn_(conv[-1], bn)  # type: ignore[arg-type]
    statistics: Any = (bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
    conv.weight, conv.bias = _parameter(weight), _parameter(bias)
    return True


def fuse_bn_linear_(bn: nn.Module, linear: nn.Linear) -> bool:
    """Merge an eval-mode batch norm that stands before ``linear`` (a mean over positions may lie between), in place.

    ``W (s * x + t) + b = (W * s) x + (W t + b)`` with ``s = gamma / sqrt(var + eps)`` and ``t = beta - s * mean``.

    Returns:
        False, with nothing done, where ``bn`` is no batch norm or keeps no running statistics.
    """
    if type(bn) not in _BATCH_NORMS or bn.running_mean is None:
        return False
    scale, shift = affine_of(bn)
    bias = linear.weight @ shift
    linear.bias = _parameter(bias if linear.bias is None else bias + linear.bias)
    linear.weight = _parameter(linear.weight * scale)
    return True


def fuse_bn_pointwise_(bn: nn.Module, conv: nn.Conv2d) -> bool:
    """Merge an eval-mode batch norm that stands before a 1x1 convolution without padding, in place; as
    :func:`fuse_bn_linear_`.

    Returns:
        False, with nothing done, where ``bn`` is no batch norm or keeps no running statistics.
    """
    if type(bn) not in _BATCH_NORMS or bn.running_mean is None:
        return False
    scale, shift = affine_of(bn)
    bias = conv.weight.flatten(1) @ shift
    conv.bias = _parameter(bias if conv.bias is None else bias + conv.bias)
    conv.weight = _parameter(conv.weight * scale.view(1, -1, 1, 1))
    return True


@torch.no_grad()
def affine_of(bn: Any) -> tuple[Tensor, Tensor]:
    """(scale, shift) of an eval-mode batch norm, each (C,)."""
    scale = torch.rsqrt(bn.running_var + bn.eps)
    if bn.weight is not None:
        scale = scale * bn.weight
    shift = -bn.running_mean * scale
    return scale, shift if bn.bias is None else shift + bn.bias


def _on_its_own(module: nn.Module, uses: Counter[int]) -> bool:
    """Whether none of its parts serves elsewhere too, and no hook waits on a norm."""
    return all(
        uses[id(part)] == uses[id(module)] and not (type(part) in _BATCH_NORMS and _hooked(part))
        for part in module.modules()
    )


def _fold_sequential(sequence: nn.Module, uses: Counter[int]) -> None:
    children = list(sequence.named_children())
    for (_, conv), (name, bn) in pairwise(children):
        simple = type(conv) is nn.Conv2d and uses[id(conv)] == 1 == uses[id(bn)]
        if simple and not _hooked(conv) and not _hooked(bn) and fuse_conv_bn_(conv, bn):  # type: ignore[arg-type]
            setattr(sequence, name, nn.Identity())


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach())
