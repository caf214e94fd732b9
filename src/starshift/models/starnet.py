# SPDX-License-Identifier: Apache-2.0
"""StarNet (Ma et al., "Rewrite the Stars", CVPR 2024): timm's network under timm's names, and its form for 32 pixels.

``starnet_<size>`` is the paper's network for 224 pixels: it halves the image five times. 32-pixel images would reach
the third stage, where most blocks are, as 2x2 and the last as one pixel, and a 7x7 depthwise convolution would see
hardly more than its own centre. ``starnet_<size>_32px`` therefore leaves out the first two halvings (the stem's and
the first stage's): the stages see 32, 16, 8 and 4 pixels where the original at 224 sees 56, 28, 14 and 7, so kernel
and map keep about their proportion, and the parameters are the same in number, name and shape.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from starshift.errors import StarshiftError
from starshift.layers import ConvBN, StarBlock
from starshift.models._base import ImageModel, draw_weights, drop_path_rates, one_each
from starshift.models._registry import CIFAR, Variant


class StarNet(ImageModel):
    """Stem, four stages (3x3 convolution + BN, then star blocks), BN, mean pool, classifier.

    Args:
        base_dim: channels of the first stage; they double with each stage.
        depths: blocks of each stage.
        mlp_ratio: width of a block's branches over its channels.
        act, placement, kernel_size, layout: of the blocks, see :class:`starshift.layers.StarBlock`; ``act`` also of
            the stem.
        mode: ``star`` or ``sum``, for all stages or one for each.
        stem_chs: channels of the stem.
        stem_stride, first_stride: 1 or 2, of the stem and of the first stage's convolution.
        init: ``timm`` draws convolutions and classifier from a truncated normal (std 0.02), as timm's port does;
            ``official`` draws the classifier alone and leaves convolutions at PyTorch's default, as the paper's code
            does (it tests ``isinstance(m, nn.Linear or nn.Conv2d)``, which is ``nn.Linear``).
        num_classes, in_chans, drop_rate, drop_path_rate, global_pool: as everywhere. The paper trains with drop path 0
            (s1), 0.01 (s2, s3) and 0.02 (s4).

    Raises:
        StarshiftError: an option has a value it cannot have.
    """

    initial_only = frozenset({"init"})

    def __init__(
        self,
        base_dim: int = 32,
        depths: Sequence[int] = (3, 3, 12, 5),
        mlp_ratio: int = 4,
        act: str = "relu6",
        placement: str = "first",
        mode: str | Sequence[str] = "star",
        kernel_size: int = 7,
        layout: str = "both",
        stem_chs: int = 32,
        stem_stride: int = 2,
        first_stride: int = 2,
        init: str = "timm",
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        modes = one_each("mode", mode, len(depths))
        if not {stem_stride, first_stride} <= {1, 2}:
            raise StarshiftError(f"stem_stride and first_stride are 1 or 2, not {stem_stride} and {first_stride}")
        widths = [base_dim * 2**i for i in range(len(depths))]
        strides = [first_stride] + [2] * (len(depths) - 1)
        rates = drop_path_rates(drop_path_rate, list(depths))
        stem = nn.Sequential(ConvBN(nn.Conv2d(in_chans, stem_chs, 3, stem_stride, 1), act=act))
        stages: list[nn.Module] = []
        for width, before, stride, stage_mode, stage_rates in zip(
            widths, [stem_chs, *widths], strides, modes, rates, strict=False
        ):
            down = ConvBN(nn.Conv2d(before, width, 3, stride, 1))
            blocks = [
                StarBlock(width, mlp_ratio, kernel_size, act, placement, stage_mode, layout, r) for r in stage_rates
            ]
            stages.append(nn.Sequential(down, *blocks))
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


_SIZES = {
    "s1": {"base_dim": 24, "depths": (2, 2, 8, 3)},
    "s2": {"base_dim": 32, "depths": (1, 2, 6, 2)},
    "s3": {"base_dim": 32, "depths": (2, 2, 8, 4)},
    "s4": {"base_dim": 32, "depths": (3, 3, 12, 5)},
    "s050": {"base_dim": 16, "depths": (1, 1, 3, 1), "mlp_ratio": 3},
    "s100": {"base_dim": 20, "depths": (1, 2, 4, 1), "mlp_ratio": 4},
    "s150": {"base_dim": 24, "depths": (1, 2, 4, 2), "mlp_ratio": 3},
}
_TOP1 = {"s1": 73.5, "s2": 74.8, "s3": 77.3, "s4": 78.4}
_PAPER = "Rewrite the Stars (arXiv 2403.19967)"
_TIMM_ARGS = frozenset(
    {"base_dim", "depths", "mlp_ratio", "num_classes", "in_chans", "drop_rate", "drop_path_rate", "global_pool"}
)

VARIANTS = (
    *(
        Variant(
            f"starnet_{size}",
            StarNet,
            args,
            published_top1={"imagenet-1k": _TOP1[size]} if size in _TOP1 else {},
            paper=_PAPER,
            timm_args=_TIMM_ARGS,
        )
        for size, args in _SIZES.items()
    ),
    *(
        Variant(
            f"starnet_{size}_32px",
            StarNet,
            {**args, "stem_stride": 1, "first_stride": 1},
            **CIFAR,
            paper=_PAPER,
        )
        for size, args in _SIZES.items()
    ),
)
