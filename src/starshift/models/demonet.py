# SPDX-License-Identifier: Apache-2.0
"""DemoNet (Ma et al., "Rewrite the Stars", CVPR 2024): the isotropic network that compares star with sum.

``demonet_d12_w192`` has 12 blocks of width 192; ``mode="sum"`` is its counterpart. ``patch_size`` suits it to small
images (4 for 32 pixels). ``demonet_2d`` is its twin on points of the plane, for decision boundaries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from starshift.errors import StarshiftError
from starshift.layers import DemoBlock
from starshift.models._base import ImageModel, drop_path_rates, truncated_normal_
from starshift.models._registry import Variant


class PatchStem(nn.Conv2d):
    """One strided convolution over patches that do not overlap; channels-last output, as the blocks work on."""

    def __init__(self, in_channels: int, out_channels: int, patch_size: int) -> None:
        super().__init__(in_channels, out_channels, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).contiguous(memory_format=torch.channels_last)


class DemoNet(ImageModel):
    """Patchify stem (one strided convolution), equal blocks, mean over positions, LayerNorm, classifier.

    Args:
        depth: blocks.
        width: channels.
        mode: ``star`` or ``sum``.
        act: one of :data:`starshift.ops.ACTIVATIONS`.
        placement: where the activation stands, one of :data:`starshift.ops.PLACEMENTS`.
        patch_size: of the stem in pixels; images are cut to a multiple of it.
        kernel_size: of the depthwise convolutions; 0 leaves them out.
        layer_scale: initial value; None leaves it out.
        num_classes, in_chans, drop_rate, drop_path_rate, global_pool: as everywhere.
    """

    levels_name = "blocks"
    feature_levels = 3
    first_conv = "stem"
    pools = ("avg", "max", "avgmax", "")  # the norm after the pool has the blocks' width

    def __init__(
        self,
        depth: int = 12,
        width: int = 192,
        mode: str = "star",
        act: str = "gelu",
        placement: str = "first",
        patch_size: int = 16,
        kernel_size: int = 7,
        layer_scale: float | None = 1e-6,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        if depth < 1 or width < 1 or patch_size < 1:
            raise StarshiftError(f"depth, width and patch_size must be positive, not {depth}, {width}, {patch_size}")
        (rates,) = drop_path_rates(drop_path_rate, [depth])
        super().__init__(
            stem=PatchStem(in_chans, width, patch_size),
            stages=[DemoBlock(width, mode, act, placement, kernel_size, layer_scale, drop_path=r) for r in rates],
            norm=nn.LayerNorm(width),
            widths=[width] * depth,
            reductions=[patch_size] * depth,
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
            global_pool=global_pool,
            min_size=patch_size,
        )
        truncated_normal_(self, (nn.Linear, nn.Conv2d))
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def _finish_map(self, x: Tensor) -> Tensor:
        return x

    def _finish_pooled(self, x: Tensor) -> Tensor:
        return self.norm(x) if x.dim() == 2 else self._norm_map(x)

    def _norm_map(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DemoNet2d(DemoNet):
    """DemoNet on points (N, 2): Linear 2 to ``width``, blocks without depthwise convolution, LayerNorm, Linear.

    A point is an image of one pixel; (N, 2, 1, 1) is accepted too.

    Args:
        depth, width, mode, act, placement, num_classes, in_chans, drop_rate, drop_path_rate, global_pool: as
            :class:`DemoNet`.
    """

    def __init__(
        self,
        depth: int = 4,
        width: int = 100,
        mode: str = "star",
        act: str = "relu",
        placement: str = "first",
        num_classes: int = 2,
        in_chans: int = 2,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__(
            depth,
            width,
            mode,
            act,
            placement,
            patch_size=1,
            kernel_size=0,
            layer_scale=None,
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            global_pool=global_pool,
        )

    def _prepare(self, x: Tensor) -> Tensor:
        return super()._prepare(x[:, :, None, None] if x.dim() == 2 else x)


_WIDTHS = range(32, 449, 32)
_DEPTHS = range(6, 25, 2)
_PAPER = "Rewrite the Stars (arXiv 2403.19967)"
_TOP1 = {(12, 192): {"imagenet-1k": 71.7, "imagenet-1k mode=sum": 66.2}}

VARIANTS = (
    *(
        Variant(
            f"demonet_d{depth}_w{width}",
            DemoNet,
            {"depth": depth, "width": width},
            published_top1=_TOP1.get((depth, width), {}),
            paper=_PAPER,
        )
        for depth, width in sorted({*((12, w) for w in _WIDTHS), *((d, 192) for d in _DEPTHS)})
    ),
    Variant(
        "demonet_2d",
        DemoNet2d,
        {"in_chans": 2},
        size=(1, 1),
        num_classes=2,
        mean=(0.0, 0.0),
        std=(1.0, 1.0),
        crop_pct=1.0,
        paper=_PAPER,
    ),
)
