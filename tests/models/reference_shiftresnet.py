# SPDX-License-Identifier: Apache-2.0
"""ShiftResNet written independently from the facts of the reference code: its names, its formula of the shift."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def reference_shift(x: Tensor, kernel_size: int = 3, dilation: int = 1) -> Tensor:
    """Channel by channel: ``dx = s (c % k - k // 2)``, ``dy = s ((c // k) % k - k // 2)``; the remainder stays."""
    out = torch.zeros_like(x)
    height, width = x.shape[2:]
    moving = x.shape[1] // kernel_size**2 * kernel_size**2
    for c in range(x.shape[1]):
        dx = dilation * (c % kernel_size - kernel_size // 2) if c < moving else 0
        dy = dilation * ((c // kernel_size) % kernel_size - kernel_size // 2) if c < moving else 0
        ys, xs = slice(max(0, -dy), min(height, height - dy)), slice(max(0, -dx), min(width, width - dx))
        from_ys, from_xs = slice(ys.start + dy, ys.stop + dy), slice(xs.start + dx, xs.stop + dx)
        out[:, c, ys, xs] = x[:, c, from_ys, from_xs]
    return out


class ShiftConv(nn.Module):
    def __init__(self, in_planes: int, out_planes: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = out_planes * expansion
        self.conv1 = nn.Conv2d(in_planes, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, out_planes, 1, stride, bias=False)
        self.bn2 = nn.BatchNorm2d(out_planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_planes != out_planes:
            projection = nn.Conv2d(in_planes, out_planes, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_planes))

    def forward(self, x: Tensor) -> Tensor:
        y = reference_shift(F.relu(self.bn1(self.conv1(x))))
        return F.relu(self.bn2(self.conv2(y))) + self.shortcut(x)


class ResNet(nn.Module):
    """Three groups of three modules."""

    def __init__(self, expansion: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        before = 16
        for i, (planes, stride) in enumerate(((16, 1), (32, 2), (64, 2)), start=1):
            blocks = []
            for step in (stride, 1, 1):
                blocks.append(ShiftConv(before, planes, step, expansion))
                before = planes
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.avg_pool2d(x, 8).flatten(1))
