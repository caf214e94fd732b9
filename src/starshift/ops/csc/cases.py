# SPDX-License-Identifier: Apache-2.0
"""Cases of the conv-shift-conv operator."""

from __future__ import annotations

from starshift.ops._case import Case
from starshift.ops.shift.offsets import Offsets, grouped_offsets, interleaved_offsets


def _case(
    name: str,
    why: str,
    x: tuple[int, int, int, int],
    wide: int,
    k: int,
    offsets: Offsets | None = None,
    stride: int = 1,
    bench: bool = False,
) -> Case:
    tensors = {"x": x, "w1": (wide, x[1], 1, 1), "weight": (wide,), "bias": (wide,), "w2": (k, wide, 1, 1)}
    return Case(name, why, tensors, {"offsets": offsets or grouped_offsets(wide), "stride": stride}, bench)


CASES = {
    "csc": [
        _case("grouped", "the native form", (2, 8, 6, 8), 32, 8),
        _case("odd", "channels and pixels that fit no vector", (3, 11, 7, 5), 37, 19),
        _case("stride2", "positions that no output reads get the norm's gradient alone", (2, 8, 6, 8), 24, 16, None, 2),
        _case("stride2-odd", "the same, odd size", (2, 5, 7, 5), 20, 7, None, 2),
        _case("interleaved", "a run a channel", (2, 6, 5, 5), 20, 6, interleaved_offsets(20)),
        _case("kernel5", "moves by two, dilated: most lanes outside", (2, 9, 8, 7), 53, 9, grouped_offsets(53, 5, 2)),
        _case("wide", "several blocks of channels", (2, 20, 5, 9), 300, 20),
        _case("many-rows", "several chunks and turns of the ring", (9, 6, 17, 13), 20, 6),
        *(
            _case(f"shiftresnet20-{c}x{h}", "E=6, 32 px", (128, c, h, h), 6 * c, c, bench=True)
            for c, h in ((16, 32), (32, 16), (64, 8))
        ),
    ],
}
