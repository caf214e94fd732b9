# SPDX-License-Identifier: Apache-2.0
"""Cases of the shift operators."""

from __future__ import annotations

from typing import Any

from starshift.ops._case import Case
from starshift.ops.shift.offsets import Offsets, grouped_offsets, interleaved_offsets


def _conv(
    x: tuple[int, int, int, int], k: int, offsets: Offsets, stride: int = 1, bias: bool = True, **case: Any
) -> dict[str, Any]:
    tensors = {"x": x, "weight": (k, x[1], 1, 1), "bias": (k,) if bias else None}
    return {"tensors": tensors, "options": {"offsets": offsets, "stride": stride}, **case}


def _shift(x: tuple[int, int, int, int], offsets: Offsets, **case: Any) -> dict[str, Any]:
    return {"tensors": {"x": x}, "options": {"offsets": offsets}, **case}


CASES = {
    "shift2d": [
        Case("grouped", "the native form, with a remainder", **_shift((2, 20, 6, 5), grouped_offsets(20))),
        Case(
            "interleaved",
            "the reference code's form: a run a channel",
            **_shift((2, 20, 6, 5), interleaved_offsets(20)),
        ),
        Case("kernel5", "moves by two", **_shift((1, 53, 7, 9), grouped_offsets(53, 5))),
        Case("dilation2", "kernel 3, dilation 2", **_shift((1, 18, 7, 9), grouped_offsets(18, 3, 2))),
        Case("few", "fewer channels than displacements: nothing moves", **_shift((2, 5, 4, 4), grouped_offsets(5))),
        Case("beyond", "moved out of the image altogether", **_shift((1, 27, 2, 3), grouped_offsets(27, 3, 4))),
        Case(
            "uneven", "runs of any length and displacement", **_shift((2, 6, 5, 5), ((1, 3, -2), (3, 0, 0), (2, -1, 4)))
        ),
        Case("long-runs", "runs of several vectors and a rest", **_shift((2, 171, 5, 6), grouped_offsets(171))),
        Case("mixed", "runs shorter than half a vector", **_shift((2, 45, 6, 7), interleaved_offsets(45, 3, 2))),
        Case("one-pixel", "1x1 image", **_shift((2, 9, 1, 1), grouped_offsets(9))),
        Case("empty", "a batch of nothing", **_shift((0, 9, 3, 3), grouped_offsets(9))),
        *(
            Case(
                f"shiftnet-a-{c}x{h}",
                "ShiftNet-A at 224 px",
                **_shift((32, c, h, h), grouped_offsets(c, 5)),
                bench=True,
            )
            for c, h in ((256, 56), (512, 28), (768, 14), (1024, 7))
        ),
    ],
    "shift_conv2d": [
        Case("grouped", "the native form", **_conv((2, 20, 6, 5), 8, grouped_offsets(20))),
        Case(
            "stride2", "only the kept outputs, even size", **_conv((2, 18, 6, 8), 7, grouped_offsets(18), 2, bias=False)
        ),
        Case("stride2-odd", "only the kept outputs, odd size", **_conv((2, 18, 7, 5), 7, grouped_offsets(18), 2)),
        Case("interleaved", "a run a channel", **_conv((2, 20, 5, 5), 6, interleaved_offsets(20), bias=False)),
        Case("kernel5", "moves by two, dilated", **_conv((1, 53, 9, 9), 5, grouped_offsets(53, 5, 2))),
        Case("stride3", "a stride that leaves rows out", **_conv((2, 18, 8, 7), 5, grouped_offsets(18, 5), 3)),
        Case(
            "blocks", "several blocks of channels, several chunks", **_conv((3, 300, 9, 21), 20, grouped_offsets(300))
        ),
        Case("ring", "many small images: chunks across images", **_conv((31, 12, 5, 3), 20, grouped_offsets(12))),
        Case("one-pixel", "1x1 image", **_conv((2, 9, 1, 1), 3, grouped_offsets(9))),
        Case("empty", "a batch of nothing", **_conv((0, 9, 3, 3), 3, grouped_offsets(9))),
        *(
            Case(
                f"shiftresnet20-{c}x{h}", "E=6, 32 px", **_conv((128, c, h, h), c // 6, grouped_offsets(c)), bench=True
            )
            for c, h in ((96, 32), (192, 16), (384, 8))
        ),
        *(
            Case(
                f"shiftnet-a-{c}x{h}",
                "ShiftNet-A at 224 px",
                **_conv((32, c, h, h), k, grouped_offsets(c, kernel_size), stride),
                bench=True,
            )
            for c, h, k, kernel_size, stride in (
                *((128, 112, 32, 5, 2), (256, 56, 64, 5, 1), (384, 28, 128, 5, 1)),
                *((512, 14, 256, 3, 1), (512, 7, 512, 3, 1)),
            )
        ),
    ],
}
