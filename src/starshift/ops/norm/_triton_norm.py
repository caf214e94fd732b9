# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-untyped-defs=False
"""Batch norm and activation by Triton kernels: the passes of one norm, alone or among the passes of a larger block."""

from __future__ import annotations

import torch
from torch import Tensor

from starshift.ops._triton import cdiv, config, image_layout, launch, pixel_rows, power_of_two, rows_as_image, splits
from starshift.ops.norm import _triton_kernels as kernels

PROGRAMS = 4
"""That share the sums, a multiprocessor."""


class Norm:
    """One batch norm on one tensor of rows: its sums, and its passes.

    Args:
        x: (R, C), contiguous.
        weight, bias: (C,) or None.
        mean, var: (C,); written by :meth:`gather`, or given.
        eps: added to the variance.
        affine: mean, scale and bias, (3 C,), where they are known; else :meth:`gather` finds them.
    """

    def __init__(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        eps: float,
        affine: Tensor | None = None,
    ) -> None:
        self.rows, self.channels = x.shape
        self.weight, self.bias = (None if t is None else t.contiguous() for t in (weight, bias))
        self.x, self.mean, self.var, self.eps = x, mean.contiguous(), var.contiguous(), eps
        self.wide = min(64, power_of_two(self.channels))
        tasks = cdiv(self.channels, self.wide)
        self.parts, self.part_rows = splits(tasks, self.rows, x.device, 2048 // self.wide, PROGRAMS)
        self.affine = self._numbers(3) if affine is None else affine

    def gather(self, training: bool, parts: Tensor | None = None, center: Tensor | None = None) -> None:
        """Mean, scale and bias; in training from the batch's own mean and variance, which are written.

        Args:
            parts, center: sums of x - center and of its square, (P, 2, C), where whoever wrote x has them.
        """
        if training and parts is None:
            parts, center = self._parts(), self.x
            self._over_parts(kernels.moments, x=self.x, parts=parts)
        self._finish(
            kernels.finish,
            parts=parts,
            center=center,
            bias=self.bias,
            mean=self.mean,
            var=self.var,
            affine=self.affine,
            HAS_BIAS=self.bias is not None,
            TRAINING=training,
        )

    def apply(
        self, out: Tensor, act: str = "none", residual: Tensor | None = None, shortcut: Tensor | None = None
    ) -> Tensor:
        """``act(norm(x) + residual) + shortcut`` into ``out``."""
        self._over_rows(
            kernels.apply,
            affine=self.affine,
            residual=residual,
            shortcut=shortcut,
            out=out,
            HAS_RESIDUAL=residual is not None,
            HAS_SHORTCUT=shortcut is not None,
            ACT=act,
        )
        return out

    def gather_backward(
        self,
        grad: Tensor,
        training: bool,
        act: str = "none",
        residual: Tensor | None = None,
        parts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of weight and bias, and the three numbers a channel that complete the gradient of x.

        Args:
            parts: sums of grad and of grad (x - mean), (P, 2, C), where whoever wrote grad has them.
        """
        completion, weight_grad, bias_grad = self._numbers(3), self._numbers(1), self._numbers(1)
        if parts is None:
            parts = self._parts()
            self._over_parts(
                kernels.reduce,
                grad=grad,
                x=self.x,
                affine=self.affine,
                residual=residual,
                mean=self.mean,
                parts=parts,
                HAS_RESIDUAL=residual is not None,
                ACT=act,
            )
        self._finish(
            kernels.finish_backward,
            parts=parts,
            mean=self.mean,
            var=self.var,
            weight_grad=weight_grad,
            bias_grad=bias_grad,
            completion=completion,
            TRAINING=training,
        )
        return weight_grad, bias_grad, completion

    def apply_backward(
        self,
        grad: Tensor,
        completion: Tensor,
        out: Tensor,
        act: str = "none",
        residual: Tensor | None = None,
        residual_grad: Tensor | None = None,
    ) -> Tensor:
        """The gradient of x into ``out``."""
        self._over_rows(
            kernels.apply_backward,
            grad=grad,
            affine=self.affine,
            residual=residual,
            completion=completion,
            x_grad=out,
            residual_grad=residual_grad,
            HAS_RESIDUAL=residual is not None,
            ACT=act,
        )
        return out

    def _numbers(self, each: int) -> Tensor:
        return torch.empty(each * self.channels, dtype=torch.float32, device=self.x.device)

    def _parts(self) -> Tensor:
        return torch.empty((self.parts, 2, self.channels), dtype=torch.float32, device=self.x.device)

    def _over_parts(self, kernel, **arguments) -> None:
        wide = self.wide
        launch(
            kernel,
            [config(4, 2, BLOCK_R=2048 // wide, BLOCK_C=wide)],
            lambda b: (cdiv(self.channels, wide), self.parts),
            (),
            self.x.device,
            rows=self.rows,
            part_rows=self.part_rows,
            C=self.channels,
            **arguments,
        )

    def _finish(self, kernel, parts: Tensor | None, **arguments) -> None:
        launch(
            kernel,
            [config(8, 1, BLOCK_C=8, ROWS=512)],
            lambda b: (cdiv(self.channels, b["BLOCK_C"]),),
            (),
            self.x.device,
            parts=parts,
            weight=self.weight,
            rows=self.rows,
            count=0 if parts is None else parts.shape[0],
            eps=self.eps,
            C=self.channels,
            HAS_WEIGHT=self.weight is not None,
            **arguments,
        )

    def _over_rows(self, kernel, **arguments) -> None:
        wide = self.wide
        launch(
            kernel,
            [config(4, 1, BLOCK_R=2048 // wide, BLOCK_C=wide)],
            lambda b: (cdiv(self.rows, b["BLOCK_R"]), cdiv(self.channels, wide)),
            (),
            self.x.device,
            x=self.x,
            rows=self.rows,
            C=self.channels,
            **arguments,
        )


def _rows_if(x: Tensor | None) -> Tensor | None:
    return None if x is None else pixel_rows(x)


def batch_norm_act(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    shortcut: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    act: str,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, training = pixel_rows(x), mean is None or var is None
    batch_mean, batch_var = (x.new_empty(x.shape[1] if training else 0, dtype=torch.float32) for _ in range(2))
    if mean is None or var is None:
        mean, var = batch_mean, batch_var
    norm = Norm(rows, weight, bias, mean, var, eps)
    norm.gather(training)
    out = norm.apply(torch.empty_like(rows), act, _rows_if(residual), _rows_if(shortcut))
    return rows_as_image(out, x, image_layout(x)), batch_mean, batch_var


def batch_norm_act_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    act: str,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, grad_rows, added = pixel_rows(x), pixel_rows(grad.to(x.dtype)), _rows_if(residual)
    norm = Norm(rows, weight, bias, mean, var, eps)
    norm.gather(training=False)
    weight_grad, bias_grad, completion = norm.gather_backward(grad_rows, training, act, added)
    added_grad = None if added is None else torch.empty_like(added)
    x_grad = norm.apply_backward(grad_rows, completion, torch.empty_like(rows), act, added, added_grad)
    layout = image_layout(x)
    residual_grad = x.new_empty(0) if added_grad is None else rows_as_image(added_grad, x, layout)
    return rows_as_image(x_grad, x, layout), residual_grad, weight_grad, bias_grad
