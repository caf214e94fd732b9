# SPDX-License-Identifier: Apache-2.0
"""1x1 convolutions in two factors of low rank: compression that goes together with star and shift.

A convolution's output is ``y = W x + b``. With U, the first r eigenvectors of y's covariance, ``mu + U U' (y - mu)`` is
the best approximation of rank r to y in the mean square. It takes two convolutions: ``U' W`` from the inputs to r
channels, and ``U`` from these to the outputs, with bias ``U U' b + (I - U U') mu``, which is b without data. Without
data the inputs count as independent with variance 1: the covariance is ``W W'``, and this is the truncated singular
value decomposition of W (Eckart-Young).
"""

from __future__ import annotations

from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from starshift.analysis._measure import Batches, ChannelStatistics, evaluating, images_of
from starshift.errors import StarshiftError
from starshift.layers import ShiftConv2d


@dataclass(frozen=True)
class FactoredLayer:
    """A convolution that was replaced.

    Attributes:
        layer, inputs, outputs: which, and its channels.
        rank: channels between the two factors.
        energy: share of the output's variance that is kept (of the squared singular values, without data).
        params_before, params_after: weights, biases left aside.
    """

    layer: str
    inputs: int
    outputs: int
    rank: int
    energy: float
    params_before: int
    params_after: int


@torch.no_grad()
def low_rank(
    model: nn.Module, *, energy: float | None = None, params: float | None = None, batches: Batches | None = None
) -> tuple[nn.Module, list[FactoredLayer]]:
    """A copy of ``model`` whose 1x1 convolutions (shifted ones too) are two of lower rank, where that makes them
    smaller.

    Args:
        model: one of ours or of timm's; learned shifts fixed first (:func:`starshift.layers.fix_shifts`).
        energy: keep this share of each output's variance, in (0, 1]; or
        params: give each convolution at most this share of its weights, in (0, 1).
        batches: (images, ...) each, to fit the factors to; None fits them to the weights alone.

    Returns:
        The copy, in the modes of ``model``, and a row for each convolution replaced.

    Raises:
        StarshiftError: not exactly one of energy and params, or one out of range, or a model without 1x1 convolutions.
    """
    if (energy is None) == (params is None) or not 0 < (energy or params or 0.0) <= 1 or params == 1:
        raise StarshiftError(f"give energy in (0, 1] or params in (0, 1), one of the two, not {energy} and {params}")
    model = deepcopy(model)
    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and _is_pointwise(m)}
    if not convs:
        raise StarshiftError(
            "the model has no plain 1x1 convolutions; take an accelerated one after starshift.decelerate"
        )
    seen = {} if batches is None else _outputs(model, convs, batches)
    rows = []
    for name, conv in convs.items():
        weight = conv.weight.flatten(1).double()
        mean, kept, vectors = _principal(conv, weight, seen.get(name))
        size, narrow = weight.numel(), sum(weight.shape)
        if params is not None:
            rank = max(1, int(params * size / narrow))
        else:
            rank = int((kept < (energy or 1.0) - 1e-12).sum()) + 1  # rounding errors are no energy
        if rank * narrow >= size:
            continue
        basis = vectors[:, :rank]
        bias = None
        if conv.bias is not None or name in seen:
            bias = mean - basis @ (basis.T @ (mean if conv.bias is None else mean - conv.bias))
        _replace(model, name, _factors(conv, basis.T @ weight, basis, bias))
        shape = (conv.in_channels, conv.out_channels, rank)
        rows.append(FactoredLayer(name, *shape, float(kept[rank - 1]), size, rank * narrow))
    return model, rows


def _principal(conv: nn.Conv2d, weight: Tensor, seen: ChannelStatistics | None) -> tuple[Tensor, Tensor, Tensor]:
    """The output's mean (K,), the share of variance that the first r directions hold (K,), and the directions (K,
    K)."""
    if seen is None:
        mean = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.double()
        covariance = weight @ weight.T
    else:
        mean, covariance = seen.mean, seen.scatter
    values, vectors = torch.linalg.eigh(covariance)
    kept = values.flip(0).clamp_min(0).cumsum(0)
    return mean, kept / kept[-1].clamp_min(1e-300), vectors.flip(1)


def _is_pointwise(conv: nn.Conv2d) -> bool:
    plain = (conv.kernel_size, conv.groups, conv.padding) == ((1, 1), 1, (0, 0))
    return type(conv) in (nn.Conv2d, ShiftConv2d) and plain


def _outputs(model: nn.Module, convs: dict[str, nn.Conv2d], batches: Batches) -> dict[str, ChannelStatistics]:
    """Statistics of each convolution's output over the batches."""
    seen = {name: ChannelStatistics() for name in convs}
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name, conv in convs.items():
            stack.callback(conv.register_forward_hook(_gather(seen[name])).remove)
        for batch in batches:
            if len(batch[0]):
                model(images_of(model, batch))
    return {name: statistics for name, statistics in seen.items() if statistics.count}


def _gather(statistics: ChannelStatistics):  # type: ignore[no-untyped-def]
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        statistics.update(output)

    return hook


def _factors(conv: nn.Conv2d, first: Tensor, second: Tensor, bias: Tensor | None) -> nn.Sequential:
    """The two convolutions; the first, which has fewer outputs, takes shift and stride."""
    rank, like = len(first), conv.weight
    reader = (
        ShiftConv2d(conv.in_channels, rank, conv.offsets, conv.stride[0], bias=False)
        if isinstance(conv, ShiftConv2d)
        else nn.Conv2d(conv.in_channels, rank, 1, conv.stride[0], bias=False)
    )
    writer = nn.Conv2d(rank, conv.out_channels, 1, bias=bias is not None)
    reader.weight = nn.Parameter(first[:, :, None, None].to(like))
    writer.weight = nn.Parameter(second[:, :, None, None].to(like))
    writer.bias = None if bias is None else nn.Parameter(bias.to(like))
    return nn.Sequential(reader, writer).train(conv.training)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
