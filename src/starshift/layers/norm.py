# SPDX-License-Identifier: Apache-2.0
"""Batch norm with the activation after it as one operator, where a kernel serves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from starshift.layers.activation import activation
from starshift.ops import OPERATORS, _native, batch_norm_act
from starshift.ops._operator import REFERENCE, autocast_dtype, forced_kernel
from starshift.ops._triton import usable

_STORAGE = tuple(_native.DTYPES)
_LEAST_INFERENCE = 1 << 20  # values; below, in 1 to 3 images of 224 pixels, the call costs more than a kernel gains


def has_kernels(x: Tensor, operator: str) -> bool:
    """Whether ``operator`` has a kernel for ``x``, at autocast's dtype. Where not, plain layers are as good."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    if not torch.compiler.is_compiling() and forced_kernel() == REFERENCE:
        return False
    device = x.device.type
    there = any(kernel.device == device for kernel in OPERATORS[operator].kernels)
    fits = (autocast_dtype(x) or x.dtype) in _STORAGE and x.numel() > 0
    return there and fits and (device == "cpu" or torch.compiler.is_compiling() or usable(x))


def runs_kernels(x: Tensor, operator: str) -> bool:
    """Whether they run on ``x`` just as it is: channels last, and of a dtype that kernels store."""
    return (
        has_kernels(x, operator)
        and x.dtype in _STORAGE
        and x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def is_small_inference(x: Tensor) -> bool:
    """Whether nothing is learnt, and ``x`` has so little on a CPU that PyTorch's own layers, called with less ado, are
    as fast as our kernels."""
    few = not torch.is_grad_enabled() and x.numel() < _LEAST_INFERENCE
    return few and x.is_cpu and not torch.compiler.is_compiling()


def has_global_hooks() -> bool:
    """Whether hooks wait on all modules."""
    return bool(torch_module._has_any_global_hook())


def is_watched(module: nn.Module) -> bool:
    """Whether someone would notice that ``module`` is not called: it has hooks, or all modules have."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or has_global_hooks()
        or "forward" in vars(module)
    )


def can_normalise(norm: Any, x: Tensor) -> bool:
    """Whether the operator's kernel serves; what it does not (one value a channel is an error) is the norm's own."""
    if not norm.training and is_small_inference(x):
        return False
    return runs_kernels(x, "batch_norm_act") and x.shape[1] == norm.num_features and x.numel() > x.shape[1]


def norm_act(norm: nn.Module, x: Tensor, act: str = "none", shortcut: Tensor | None = None) -> Tensor:
    """``act(norm(x)) + shortcut``: one operator where ``norm`` is a plain batch norm that it serves, else by parts."""
    same = shortcut is None or shortcut.dtype == x.dtype
    if type(norm) is nn.BatchNorm2d and same and not is_watched(norm) and can_normalise(norm, x):
        return normalise(norm, x, act, shortcut)
    y = activation(act)(norm(x))
    return y if shortcut is None else y + shortcut


def next_momentum(norm: Any) -> float:
    """The weight of the batch that ``norm`` sees now, counted as ``nn.BatchNorm2d`` counts it."""
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            return 1.0 / float(norm.num_batches_tracked)
    return norm.momentum or 0.0


def normalise(
    norm: Any, x: Tensor, act: str = "none", shortcut: Tensor | None = None, absent: Tensor | None = None
) -> Tensor:
    """``act(norm(x)) + shortcut``, with the running statistics kept as ``nn.BatchNorm2d`` keeps them.

    Args:
        norm: an ``nn.BatchNorm2d``. x: (N, C, H, W).
        act: one of :data:`starshift.ops.ACTIVATIONS`.
        shortcut: of x's shape and dtype, or None.
        absent: (C,) in training, or None: a bias that x has not been given. The batch's mean takes it away again; the
            running mean alone has it.
    """
    momentum = next_momentum(norm)
    mean, var = norm.running_mean, norm.running_var
    training = norm.training or (mean is None and var is None)
    if norm.training and not norm.track_running_stats:
        mean = var = None
    if absent is not None:
        x = _WithoutEffect.apply(x, absent)
    out = batch_norm_act(x, norm.weight, norm.bias, mean, var, training, momentum, norm.eps, act, shortcut=shortcut)
    if absent is not None and mean is not None:
        mean.add_(absent.detach().to(mean.dtype), alpha=momentum)
    return out


class _WithoutEffect(torch.autograd.Function):
    """A parameter that the result does not depend on, with a gradient of zeros all the same."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, parameter: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, torch.zeros_like(*ctx.saved_tensors)
