# SPDX-License-Identifier: Apache-2.0
"""Any number is a displacement: what moves out of the image altogether is zero, and needs no memory on its way.

The references pad the image by the displacement, so that this is of the compiled kernels alone.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from starshift.ops import _native, shift2d, shift_conv2d

pytestmark = pytest.mark.skipif(not _native.available(), reason="no compiled kernels here")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("far", [8, 10**7, 2**31, 2**32, -(2**31), -(2**40)])
@pytest.mark.parametrize("channels", [4, 40])
def test_what_moves_far_out_of_the_image_is_zero(channels: int, far: int, stride: int) -> None:
    half = channels // 2
    x = torch.randn(5, channels, 6, 7).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(3, channels, 1, 1)
    stays = x.clone().index_fill_(1, torch.arange(half), 0).requires_grad_()
    expected = F.conv2d(stays, weight, stride=stride)
    grad = torch.autograd.grad(expected.sum(), stays)[0].index_fill(1, torch.arange(half), 0)
    for dy, dx in ((0, far), (far, 0), (far, -far)):
        offsets = ((half, dy, dx), (channels - half, 0, 0))
        assert torch.equal(shift2d(x, offsets), stays)
        leaf = x.clone().requires_grad_()
        result = shift_conv2d(leaf, weight, None, offsets, stride)
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(torch.autograd.grad(result.sum(), leaf)[0], grad)
