# SPDX-License-Identifier: Apache-2.0
"""StarShift: the star for nonlinearity, the shift for space. Four stages as StarNet's, and its form for 32 pixels.

``starshift_<size>_32px`` halves the image one time less than ``starshift_<size>``, which is for 224 pixels. Both have
depthwise convolutions in the first two stages and shifts in the others, and start from the paper's initialisation: the
best design with shifts of those compared at equal training time (``experiments/starshift_search.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from starshift.errors import StarshiftError
from starshift.layers import ConvBN, ShiftConv2d, StarShiftBlock, make_offsets
from starshift.layers.activation import one_of
from starshift.models._base import ImageModel, draw_weights, drop_path_rates, one_each
from starshift.models._registry import CIFAR, Variant

DOWNS = ("conv", "shift")


class StarShift(ImageModel):
    """Stem (3x3 convolution + BN + act), stages (downsampler + BN, then star-shift blocks), BN, mean pool, classifier.

    Args:
        base_dim: channels of the first stage; they double with each stage.
        depths: blocks of each stage.
        mlp_ratio: width of a block's branches over its channels.
        space, kernel_size: of the blocks, see :class:`starshift.layers.StarShiftBlock`; for all stages or one for each.
        twice: of the blocks.
        down: what starts a stage: ``conv``, a 3x3 convolution, or ``shift``, a 3x3 shift with the 1x1 convolution
            after it. The first stage starts at stride ``first_stride``, the others at 2.
        act: of stem and blocks.
        stem_chs, stem_stride, first_stride: as StarNet's.
        init: as StarNet's, but ``official`` by default.
        num_classes, in_chans, drop_rate, drop_path_rate, global_pool: as everywhere.

    Raises:
        StarshiftError: an option has a value it cannot have.
    """

    def __init__(
        self,
        base_dim: int = 16,
        depths: Sequence[int] = (1, 1, 3, 1),
        mlp_ratio: int = 3,
        space: str | Sequence[str] = "shift",
        kernel_size: int | Sequence[int] = 3,
        twice: bool = False,
        down: str = "conv",
        act: str = "relu6",
        stem_chs: int = 32,
        stem_stride: int = 2,
        first_stride: int = 2,
        init: str = "official",
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        spaces = one_each("space", space, len(depths))
        kernels = one_each("kernel_size", kernel_size, len(depths))
        one_of("down", down, DOWNS)
        if not {stem_stride, first_stride} <= {1, 2}:
            raise StarshiftError(f"stem_stride and first_stride are 1 or 2, not {stem_stride} and {first_stride}")
        widths = [base_dim * 2**i for i in range(len(depths))]
        strides = [first_stride] + [2] * (len(depths) - 1)
        rates = drop_path_rates(drop_path_rate, list(depths))
        stem = nn.Sequential(ConvBN(nn.Conv2d(in_chans, stem_chs, 3, stem_stride, 1), act=act))
        stages: list[nn.Module] = []
        for i, width in enumerate(widths):
            before = widths[i - 1] if i else stem_chs
            blocks = [StarShiftBlock(width, mlp_ratio, spaces[i], kernels[i], twice, act, rate) for rate in rates[i]]
            stages.append(nn.Sequential(ConvBN(_down(before, width, strides[i], down)), *blocks))
        reductions = [stem_stride * first_stride * 2**i for i in range(len(depths))]
        super().__init__(
            stem=stem,
            stages=stages,
            norm=nn.BatchNorm2d(widths[-1]),
            widths=widths,
            reductions=reductions,
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
            global_pool=global_pool,
            min_size=reductions[-1],
        )
        draw_weights(self, init)


def _down(before: int, width: int, stride: int, down: str) -> nn.Conv2d:
    if down == "conv":
        return nn.Conv2d(before, width, 3, stride, 1)
    return ShiftConv2d(before, width, make_offsets(before, 3), stride)


_SPACE = (
    "depthwise",
    "depthwise",
    "shift",
    "shift",
)  # convolutions where maps are large, shifts where weights are many
_SIZES = {
    "s": {"base_dim": 16, "depths": (1, 1, 3, 1), "space": _SPACE},
    "m": {"base_dim": 24, "depths": (1, 2, 4, 1), "space": _SPACE},
    "l": {"base_dim": 32, "depths": (1, 2, 6, 2), "space": _SPACE},
}
_PAPER = "this library; star and shift are of arXiv 2403.19967 and arXiv 1711.08141"

VARIANTS = (
    *(
        Variant(f"starshift_{size}", StarShift, {**args, "stem_stride": 2, "first_stride": 2}, paper=_PAPER)
        for size, args in _SIZES.items()
    ),
    *(
        Variant(
            f"starshift_{size}_32px",
            StarShift,
            {**args, "stem_stride": 2, "first_stride": 1},
            **CIFAR,
            paper=_PAPER,
        )
        for size, args in _SIZES.items()
    ),
)
