# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from starshift.deploy import targets
from starshift.deploy._lower import LOWERINGS, SHIFTS, Lowering, lower_, lower_shifts_, merge_branches_, one_hot_conv
from starshift.layers import Shift2d, ShiftConv2d, StarBlock, fold_batchnorm
from starshift.models import create_model
from starshift.ops import grouped_offsets, interleaved_offsets, shift2d
from tests.tolerance import assert_close


@pytest.mark.parametrize("assign", [grouped_offsets, interleaved_offsets])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (3, 2), (5, 1), (7, 3)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_convolution_is_the_shift_to_the_last_bit(assign, kernel: int, dilation: int, stride: int) -> None:
    x = torch.randn(2, 53, 11, 14, generator=torch.Generator().manual_seed(0))
    offsets = assign(53, kernel, dilation)
    expected = shift2d(x, offsets)[:, :, ::stride, ::stride]
    assert torch.equal(one_hot_conv(offsets, stride)(x), expected)


def test_moves_of_another_shape_than_a_kernel() -> None:
    x = torch.randn(1, 6, 9, 9, generator=torch.Generator().manual_seed(0))
    offsets = ((1, 0, 4), (2, -2, 0), (3, 0, 0))
    assert torch.equal(one_hot_conv(offsets)(x), shift2d(x, offsets))


@pytest.mark.parametrize("name", ["shiftresnet20", "shiftnet_c"])
def test_a_whole_network_keeps_its_logits(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=4).eval()
    lowered = lower_shifts_(deepcopy(model))
    assert any(isinstance(m, (Shift2d, ShiftConv2d)) for m in model.modules())
    assert not any(isinstance(m, (Shift2d, ShiftConv2d)) for m in lowered.modules())
    with torch.inference_mode():
        x = torch.randn(2, 3, 64, 64)
        assert_close("logits", lowered(x), model(x))


def test_a_network_without_shifts_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    before = list(model.modules())
    assert list(lower_shifts_(model).modules()) == before


@pytest.mark.parametrize("options", [{}, {"placement": "both"}, {"layout": "none"}, {"act": "gelu"}])
def test_merged_branches_keep_the_logits(options: dict) -> None:
    torch.manual_seed(0)
    model = fold_batchnorm(create_model("starnet_s050_32px", depths=(1, 1), base_dim=8, **options).eval())
    merged = merge_branches_(deepcopy(model))
    assert not any(isinstance(m, StarBlock) for m in merged.modules())
    with torch.inference_mode():
        x = torch.randn(2, 3, 32, 32)
        assert_close("logits", merged(x), model(x))


def test_blocks_that_add_are_not_merged() -> None:
    model = create_model("starnet_s050_32px", depths=(1, 1), base_dim=8, mode="sum").eval()
    assert sum(isinstance(m, StarBlock) for m in merge_branches_(model).modules()) == 2


def test_every_target_has_a_way_to_write_a_shift() -> None:
    assert set(LOWERINGS) <= set(targets())
    for name in targets():
        model = lower_(nn.Sequential(Shift2d(grouped_offsets(18, 3))), name)
        written = LOWERINGS.get(name, Lowering()).shift
        assert written in SHIFTS and isinstance(model[0], Shift2d) == (written == "slices")
