# SPDX-License-Identifier: Apache-2.0
"""ShiftNet-A, -B and -C for ImageNet (Wu et al., "Shift", CVPR 2018).

ShiftNet-C stays unresolved: the paper states 0.78M parameters, its text and table read as here give 0.69M.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from starshift.errors import StarshiftError
from starshift.layers import PreActCSC
from starshift.layers.shift import Assignment, per_module
from starshift.models._base import ImageModel, drop_path_rates, one_each
from starshift.models._registry import Variant


class ShiftNet(ImageModel):
    """7x7 convolution (stride 2), four groups of pre-activation modules (stride 2 each), BN, ReLU, mean pool,
    classifier.

    Args:
        stem_chs: channels of the stem; fewer than the first group's.
        widths: channels of each group.
        depths: modules of each group.
        expansion: for each group E of its first module and E of the rest; or one number for all.
        kernel_size: of the shifts, one for each group or one for all.
        dilation: of the shifts, likewise.
        offsets: ``grouped`` or ``interleaved``, or one entry for each module: a name, or runs [channels, dy, dx].
        sc2: SC² modules (shift, conv, shift, conv).
        num_classes, in_chans, drop_rate, drop_path_rate, global_pool: as everywhere.
        shift: ``fixed``, or learned within the kernel's reach: ``active`` or ``sparse``.

    Raises:
        StarshiftError: lists of different lengths, or widths that do not grow.
    """

    first_conv = "stem"

    def __init__(
        self,
        stem_chs: int = 32,
        widths: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (5, 6, 7, 3),
        expansion: float | Sequence[Sequence[float]] = ((4, 4), (4, 3), (3, 2), (2, 1)),
        kernel_size: int | Sequence[int] = (5, 5, 3, 3),
        dilation: int | Sequence[int] = 1,
        offsets: str | Sequence[Assignment] = "grouped",
        sc2: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
        shift: str = "fixed",
    ) -> None:
        groups = len(widths)
        expansions = [(expansion, expansion)] * groups if isinstance(expansion, (int, float)) else list(expansion)
        if not len(depths) == len(expansions) == groups:
            raise StarshiftError(f"depths and expansion need one entry for each of {groups} widths")
        kernels, dilations = one_each("kernel_size", kernel_size, groups), one_each("dilation", dilation, groups)
        stages: list[nn.Module] = []
        before = stem_chs
        assignments = iter(per_module(offsets, sum(depths)))
        rates = drop_path_rates(drop_path_rate, list(depths))
        for width, (first, rest), kernel, dilate, stage_rates in zip(
            widths, expansions, kernels, dilations, rates, strict=True
        ):
            blocks = []
            for i, rate in enumerate(stage_rates):
                stride, e = (2, first) if i == 0 else (1, rest)
                moves = (kernel, dilate, next(assignments))
                blocks.append(PreActCSC(before, width, stride, e, *moves, sc2, rate, shift))
                before = width
            stages.append(nn.Sequential(*blocks))
        super().__init__(
            stem=nn.Conv2d(in_chans, stem_chs, 7, 2, 3, bias=False),
            stages=stages,
            norm=nn.Sequential(nn.BatchNorm2d(before), nn.ReLU()),
            widths=list(widths),
            reductions=[4 * 2**i for i in range(groups)],
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
            global_pool=global_pool,
            min_size=2 * 2**groups,
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


_C = {"widths": (32, 64, 128, 256), "depths": (1, 4, 4, 3), "expansion": 1, "kernel_size": 3}

VARIANTS = tuple(
    Variant(
        f"shiftnet_{letter}",
        ShiftNet,
        args,
        published_top1={"imagenet-1k": top1},
        paper="Shift (arXiv 1711.08141)",
    )
    for letter, args, top1 in (
        ("a", {"stem_chs": 32}, 70.1),
        ("b", {"stem_chs": 16, "widths": (32, 64, 128, 256)}, 61.2),
        ("c", {"stem_chs": 16, **_C}, 58.8),
    )
)
