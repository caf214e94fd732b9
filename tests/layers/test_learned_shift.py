# SPDX-License-Identifier: Apache-2.0
"""Learned shifts: the interpolation, its gradients, rounding, the penalty, and the way to a fixed shift."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starshift.errors import StarshiftError
from starshift.layers import (
    CSC,
    LearnedShift2d,
    LearnedShiftConv2d,
    PreActCSC,
    Shift2d,
    displacement_penalty,
    fix_shifts,
    fold_batchnorm,
    module_offsets,
)
from starshift.layers.learned_shift import bilinear_taps
from starshift.models import create_model
from starshift.ops import shift2d
from tests.tolerance import assert_close


def _sampled(x: Tensor, displacement: Tensor) -> Tensor:
    """Bilinear shift by grid sampling, channel by channel."""
    n, c, h, w = x.shape
    rows, columns = torch.meshgrid(torch.arange(h, dtype=x.dtype), torch.arange(w, dtype=x.dtype), indexing="ij")
    out = []
    for channel in range(c):
        dy, dx = displacement[channel]
        grid = torch.stack((2 * (columns + dx) / (w - 1) - 1, 2 * (rows + dy) / (h - 1) - 1), -1)
        one = x[:, channel : channel + 1]
        out.append(F.grid_sample(one, grid.expand(n, -1, -1, -1), align_corners=True, padding_mode="zeros"))
    return torch.cat(out, 1)


@pytest.mark.parametrize("reach", [1, 2, 3])
def test_active_shift_interpolates(reach: int) -> None:
    torch.manual_seed(reach)
    layer = LearnedShift2d(12, "active", reach).double()
    with torch.no_grad():
        layer.displacement.uniform_(-reach, reach)
        layer.displacement[0], layer.displacement[1, 0] = reach, -reach  # the very edges
    x = torch.randn(2, 12, 7, 6, dtype=torch.float64)
    assert_close("active", layer(x), _sampled(x, layer.displacement))


def test_both_start_within_a_pixel_and_whole_displacements_are_the_fixed_shift() -> None:
    torch.manual_seed(0)
    layer = LearnedShift2d(900, "sparse", 2)
    assert layer.displacement.abs().max() <= 1 and layer.displacement.std() > 0.5
    x = torch.randn(2, 900, 5, 6)
    assert torch.equal(layer(x), shift2d(x, layer.offsets()))
    whole = LearnedShift2d(900, "active", 2)
    with torch.no_grad():
        whole.displacement.copy_(layer.displacement.round())
    assert torch.equal(whole(x), layer(x))


def test_gradients_of_the_active_shift() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    where = (1.9 * torch.rand(3, 2, dtype=torch.float64) - 0.95).requires_grad_()

    def shift(x: Tensor, where: Tensor) -> Tensor:
        layer = LearnedShift2d(3, "active", 1).double()
        return torch.func.functional_call(layer, {"displacement": where}, (x,))

    assert torch.autograd.gradcheck(shift, (x, where))


def test_gradients_of_the_sparse_shift_are_straight_through() -> None:
    torch.manual_seed(0)
    sparse = LearnedShift2d(4, "sparse", 1).double()
    active = LearnedShift2d(4, "active", 1).double()
    active.load_state_dict(sparse.state_dict())
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    upstream = torch.randn_like(x)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    (sparse(ours) * upstream).sum().backward()
    (active(theirs) * upstream).sum().backward()
    assert_close("displacement", sparse.displacement.grad, active.displacement.grad)  # at the real displacement
    fixed = x.clone().requires_grad_()
    (shift2d(fixed, sparse.offsets()) * upstream).sum().backward()
    assert_close("input", ours.grad, fixed.grad)  # of the shift that was made


@pytest.mark.parametrize("edge", [-1.0, 0.0, 1.0])
def test_no_displacement_is_stuck_at_a_whole_pixel(edge: float) -> None:
    where = torch.full((2, 2), edge, requires_grad=True)
    (bilinear_taps(where, 1) * torch.randn(2, 3, 3)).sum().backward()
    assert (where.grad != 0).all()
    (slope,) = torch.autograd.grad(bilinear_taps(where, 1).sum(), where)
    assert not slope.any()  # one pixel gives what its neighbour takes


def test_training_brings_displacements_back_into_reach() -> None:
    layer = LearnedShift2d(2, "active", 1)
    with torch.no_grad():
        layer.displacement.copy_(torch.tensor([[5.0, 0.5], [-0.5, -9.0]]))
    x = torch.randn(1, 2, 4, 4)
    outside = layer.eval()(x)
    assert layer.displacement[0, 0] == 5  # inference changes nothing
    assert torch.equal(layer.train()(x), outside)
    assert layer.displacement.tolist() == [[1.0, 0.5], [-0.5, -1.0]]


def test_displacements_are_learned() -> None:
    torch.manual_seed(0)
    x = F.avg_pool2d(torch.randn(8, 4, 12, 12), 3, 1, 1)  # smooth, so that the gradient points the way
    goal = shift2d(x, ((1, 1, 0), (1, 0, -1), (1, -1, 1), (1, 0, 0)))
    for kind in ("active", "sparse"):
        layer = LearnedShift2d(4, kind, 1)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
        for _ in range(150):
            optimizer.zero_grad()
            F.mse_loss(layer(x), goal).backward()
            optimizer.step()
        assert layer.displacement.round().tolist() == [[1, 0], [0, -1], [-1, 1], [0, 0]], kind


def test_penalty() -> None:
    model = nn.Sequential(LearnedShift2d(3, "sparse"), LearnedShiftConv2d(3, 2, "sparse"))
    penalty = displacement_penalty(model)
    moved = sum(p.abs().sum() for name, p in model.named_parameters() if name.endswith("displacement"))
    assert_close("penalty", penalty, moved)
    penalty.backward()
    assert torch.equal(model[0].displacement.grad, model[0].displacement.sign())
    with pytest.raises(StarshiftError, match="no learned shifts"):
        displacement_penalty(nn.Conv2d(1, 1, 1))


def _lively(module: nn.Module) -> nn.Module:
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            nn.init.normal_(m.weight)
            nn.init.normal_(m.bias)
    return module.eval()


@pytest.mark.parametrize("sc2", [False, True])
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("kind", [CSC, PreActCSC])
def test_a_sparse_shift_becomes_a_fixed_one(kind: type, folded: bool, sc2: bool) -> None:
    torch.manual_seed(0)
    module = _lively(kind(10, 16, 2, expansion=3, kernel_size=5, sc2=sc2, shift="sparse"))
    x = torch.randn(2, 10, 7, 8)
    with torch.no_grad():
        expected = module(x)
        fixed = fix_shifts(fold_batchnorm(module) if folded else module)
        assert_close("fixed", fixed(x), expected)
        assert torch.equal(module(x), expected)
    assert not any(isinstance(m, (LearnedShift2d, LearnedShiftConv2d)) for m in fixed.modules())
    assert not [name for name in fixed.state_dict() if "displacement" in name]


def test_offsets_are_not_told_where_they_would_make_another_network() -> None:
    grouped = create_model("shiftresnet20", sc2=True, kernel_size=5, dilation=2)
    again = create_model("shiftresnet20", sc2=True, kernel_size=5, dilation=2, offsets=module_offsets(grouped))
    again.load_state_dict(grouped.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_close("made anew", again.eval()(x), grouped.eval()(x))
    learned = create_model("shiftresnet20", sc2=True, shift="sparse")
    with torch.no_grad():
        for name, parameter in learned.named_parameters():
            if name.endswith("displacement"):
                parameter.uniform_(-1.4, 1.4)
    with pytest.raises(StarshiftError, match="are not grouped"):
        module_offsets(fix_shifts(learned))
    with pytest.raises(StarshiftError, match="are not grouped"):
        module_offsets(create_model("shiftresnet20", sc2=True, offsets="interleaved"))


def test_what_cannot_be() -> None:
    with pytest.raises(StarshiftError, match="between pixels"):
        fix_shifts(CSC(4, 4, shift="active"))
    with pytest.raises(StarshiftError, match="reach of at least 1"):
        CSC(4, 4, kernel_size=1, shift="active")
    with pytest.raises(StarshiftError, match="Did you mean 'sparse'"):
        PreActCSC(4, 4, shift="spars")
    fixed = PreActCSC(9, 9, offsets=[[4, 0, 1], [5, -1, 0]])
    assert isinstance(fixed.shift, Shift2d) and fixed.shift.offsets == ((4, 0, 1), (5, -1, 0))
    for runs in ([[4, 0, 1]], [[9, 0]], [[9, 0.5, 0]], [[10, 0, 0], [-1, 0, 1]], [9, 0, 0]):
        with pytest.raises(StarshiftError, match="add up to 9"):
            CSC(9, 9, offsets=runs)
