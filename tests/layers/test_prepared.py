# SPDX-License-Identifier: Apache-2.0
"""Folded modules with weights laid out once: the same numbers, and every change noticed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from starshift.errors import StarshiftError
from starshift.layers import CSC, ConvBN, Foldable, Shift2d, ShiftConv2d, StarBlock, StarShiftBlock, fold_batchnorm
from starshift.layers.activation import activation
from starshift.layers.prepared import run_prepared
from starshift.models import create_model
from starshift.ops import ACTIVATIONS, _native, use_kernel
from starshift.ops.conv.infer import Prepared
from tests.models.helpers import randomise
from tests.tolerance import assert_close

pytestmark = pytest.mark.skipif(not _native.available(), reason="no compiled kernels on this machine")
LAST = torch.channels_last
# N, C, H, W, out channels, kernel, stride, padding.
CONVS = {
    "stem": (1, 3, 32, 31, 32, (3, 3), (2, 2), (1, 1)),
    "half-a-panel": (2, 24, 9, 29, 24, (3, 3), (1, 1), (1, 1)),
    "more-channels-than-pixels": (1, 40, 6, 6, 72, (3, 3), (2, 2), (1, 1)),
    "odd-kernel": (2, 5, 9, 11, 7, (3, 5), (2, 1), (1, 2)),
    "patches": (2, 17, 32, 32, 33, (4, 4), (4, 4), (0, 0)),
    "pointwise": (3, 16, 7, 5, 16, (1, 1), (1, 1), (0, 0)),
    "one-value": (1, 1, 1, 1, 1, (1, 1), (1, 1), (0, 0)),
    "border-wider-than-image": (1, 8, 2, 2, 40, (3, 3), (1, 1), (3, 3)),
    "stride-over-kernel": (4, 3, 8, 9, 20, (2, 2), (3, 3), (0, 0)),
    "wide-row": (1, 64, 3, 500, 16, (3, 3), (1, 1), (1, 1)),
}


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", CONVS)
def test_convolution_equals_float64(name: str, dtype: torch.dtype, threads: int) -> None:
    n, c, h, w, out, kernel, stride, padding = CONVS[name]
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator).to(dtype) for shape in ((n, c, h, w), (out, c, *kernel)))
    bias = torch.randn(out, generator=generator).to(dtype)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding)
    y = Prepared(weight, bias, stride, padding, "none")(x)
    assert y.dtype == dtype and (y.is_contiguous(memory_format=LAST) or y.numel() == 1)
    assert_close("with bias", y, expected)
    assert_close("without", Prepared(weight, None, stride, padding, "none")(x), expected - bias.double().view(-1, 1, 1))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_convolution_with_its_activation(act: str) -> None:
    x, layer = 3 * torch.randn(2, 5, 6, 7), nn.Conv2d(5, 19, 3, padding=1)
    with torch.no_grad():
        y = Prepared(layer.weight, layer.bias, layer.stride, layer.padding, act)(x)
        assert_close(act, y, activation(act)(layer.double()(x.double())), torch.float32)


def test_nan_reaches_what_reads_it_and_nothing_else() -> None:
    x, layer = torch.zeros(1, 3, 8, 8), nn.Conv2d(3, 8, 3, padding=1)
    x[0, 1, 4, 4] = torch.nan
    with torch.no_grad():
        y = Prepared(layer.weight, layer.bias, layer.stride, layer.padding, "relu6")(x)
    assert y.isnan().any(1).nonzero()[:, 1:].tolist() == [[i, j] for i in (3, 4, 5) for j in (3, 4, 5)]


BLOCKS: dict[str, Callable[[], Foldable]] = {
    "block": lambda: StarBlock(24),
    "block, convolution before": lambda: StarBlock(24, layout="before"),
    "block, convolution after": lambda: StarBlock(24, layout="after", placement="both"),
    "block without space": lambda: StarBlock(24, layout="none", act="gelu"),
    "shift": lambda: StarShiftBlock(24),
    "shift twice": lambda: StarShiftBlock(24, twice=True, drop_path=0.1),
    "shift by five": lambda: StarShiftBlock(24, kernel_size=5, act="relu"),
    "depthwise shift block": lambda: StarShiftBlock(24, space="depthwise", kernel_size=5, twice=True),
    "csc": lambda: CSC(24, 24, drop_path=0.1),
    "csc, stride": lambda: CSC(24, 40, stride=2, expansion=3),
    "csc, wider": lambda: CSC(24, 33, expansion=9, kernel_size=5, relu="sum"),
    "csc, stride after the sum": lambda: CSC(24, 7, stride=2, relu="sum", offsets="interleaved"),
}


def made(kind: str) -> tuple[Foldable, Tensor]:
    """A folded module, and what it reads."""
    torch.manual_seed(0)
    if kind == "conv":
        return _folded(ConvBN(nn.Conv2d(12, 20, 3, 2, 1), act="relu6")), torch.randn(2, 12, 9, 8)
    if kind in BLOCKS:
        return _folded(BLOCKS[kind]()), torch.randn(2, 24, 9, 7)
    if kind == "shift model":
        return _folded(create_model("starshift_s_32px", num_classes=5)), torch.randn(2, 3, 32, 32)
    if kind == "shiftresnet":
        return _folded(create_model("shiftresnet20", num_classes=5)), torch.randn(2, 3, 32, 32)
    return _folded(create_model("starnet_s050", num_classes=5)), torch.randn(2, 3, 64, 64)


def _folded(module: nn.Module) -> Foldable:
    with torch.no_grad():
        found = fold_batchnorm(randomise(module))
    assert isinstance(found, Foldable)
    return found


def prepared(module: Foldable, x: Tensor) -> Tensor | None:
    return run_prepared(module, x, (module.stem, module.levels) if hasattr(module, "levels") else None)


every_kind = pytest.mark.parametrize("kind", ["conv", *BLOCKS, "model", "shift model", "shiftresnet"])


@every_kind
def test_the_same_numbers(kind: str) -> None:
    module, x = made(kind)
    with torch.no_grad():
        assert prepared(module, x) is not None
        with use_kernel("reference"):
            assert prepared(module, x) is None
            expected = module(x)
        assert_close("output", module(x), expected)
        assert_close("channels last", module(x.contiguous(memory_format=LAST)), expected)
        assert_close("bfloat16", copy.deepcopy(module).bfloat16()(x.bfloat16()), expected)
    with torch.inference_mode():
        assert_close("inference mode", module(x), expected)
        assert prepared(module, x) is not None


@every_kind
def test_not_with_gradients_nor_in_training(kind: str) -> None:
    module, x = made(kind)
    assert prepared(module, x) is None
    module(x.requires_grad_()).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    with torch.no_grad():
        assert prepared(module.train(), x) is None


def test_a_mode_of_pytorchs_sees_the_layers() -> None:
    module, x = made("model")
    with torch.no_grad():
        expected = module(x)
        with FlopCounterMode(display=False) as counter:
            assert_close("counted", module(x), expected)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert isinstance(module(mode.from_tensor(x)), FakeTensor)
    assert counter.get_total_flops() > 0


def _first_conv(module: nn.Module) -> nn.Conv2d:
    return next(m for m in module.modules() if isinstance(m, nn.Conv2d))


def _in_place(module: nn.Module) -> None:
    _first_conv(module).weight.mul_(2)


def _another(module: nn.Module) -> None:
    conv = _first_conv(module)
    conv.weight = nn.Parameter(conv.weight * 2)


def _bias_gone(module: nn.Module) -> None:
    _first_conv(module).bias = None


def _loaded(module: nn.Module) -> None:
    module.load_state_dict({name: 1.1 * value for name, value in module.state_dict().items()})


def _parametrised(module: nn.Module) -> None:
    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    torch.nn.utils.parametrize.register_parametrization(_first_conv(module), "weight", Twice())


def _child_replaced(module: nn.Module) -> None:
    owner = next(m for m in module.modules() if type(m) is ConvBN)
    owner.conv = copy.deepcopy(owner.conv).requires_grad_(False)
    owner.conv.weight.mul_(2)


def _activation_in_place_of_the_norm(module: nn.Module) -> None:
    next(m for m in module.modules() if type(m) is ConvBN).bn = nn.Tanh()


@every_kind
@pytest.mark.parametrize(
    "change",
    [_in_place, _another, _bias_gone, _loaded, _parametrised, _child_replaced, _activation_in_place_of_the_norm],
)
def test_a_change_is_noticed(kind: str, change: Callable[[nn.Module], None]) -> None:
    module, x = made(kind)
    with torch.no_grad():
        before = module(x)
        change(module)
        after = module(x)
        with use_kernel("reference"):
            assert_close("after", after, module(x))
    assert not torch.allclose(before, after)


@pytest.mark.parametrize(
    ("kind", "part", "option", "value"),
    [
        ("conv", "", "act", "gelu"),
        ("block", "", "placement", "product"),
        ("shift", "", "act", "gelu"),
        ("shift", "space", "offsets", ((20, 1, 0), (4, 0, -2))),
        ("csc, stride", "", "relu", "sum"),
        ("csc", "conv2.conv", "offsets", ((20, 1, 0), (4, 0, -2))),
        ("shift model", "stages.2.1.space", "offsets", ((64, 0, 1),)),
        ("model", "stages.1.1", "act", "gelu"),
    ],
)
def test_a_changed_option_is_noticed(kind: str, part: str, option: str, value: object) -> None:
    module, x = made(kind)
    with torch.no_grad():
        before = module(x)
        setattr(module.get_submodule(part), option, value)
        after = module(x)
        with use_kernel("reference"):
            assert_close("after", after, module(x))
    assert not torch.equal(before, after)


@every_kind
def test_a_hook_on_an_inner_part_is_called(kind: str) -> None:
    module, x = made(kind)
    seen: list[int] = []
    with torch.no_grad():
        expected = module(x)
        handle = _first_conv(module).register_forward_hook(lambda *_: seen.append(1))
        assert_close("with a hook", module(x), expected)
        assert seen == [1]
        handle.remove()
        module(x)
        everywhere = torch.nn.modules.module.register_module_forward_hook(lambda *_: seen.append(2))
        module(x)
        everywhere.remove()
        assert seen.count(2) > 1
        assert prepared(module, x) is not None


def test_what_holds_other_layers_runs_by_them() -> None:
    with torch.no_grad():
        for module in (
            ConvBN(nn.Conv2d(12, 12, 3, padding=1, groups=12)),
            ConvBN(nn.Conv2d(12, 12, 3, padding=2, dilation=2)),
            ConvBN(nn.Conv2d(12, 12, 3, padding=1, padding_mode="reflect")),
            ConvBN(nn.Conv2d(12, 12, 3, padding="same")),
            StarBlock(12, mode="sum"),
            CSC(12, 12, sc2=True),
            CSC(12, 12, shift="active"),
        ):
            x, folded = torch.randn(2, 12, 7, 7), _folded(module)
            assert prepared(folded, x) is None
            assert_close(type(module).__name__, folded(x), module.eval()(x))


def test_a_network_of_other_blocks_is_not_tried_as_a_whole() -> None:
    assert not _folded(create_model("resnet20", num_classes=5)).folded
    assert _folded(create_model("shiftresnet20", num_classes=5)).folded
    assert not _folded(create_model("demonet_d12_w96", num_classes=5)).folded
    assert _folded(create_model("starnet_s050_32px", num_classes=5)).folded


def test_parts_that_do_not_fit_each_other_are_for_the_layers_to_refuse() -> None:
    x = torch.randn(2, 12, 7, 7)
    for module, part, other in (
        (CSC(12, 12), "conv2.conv", ShiftConv2d(12, 11, ((12, 0, 1),))),
        (CSC(12, 12), "conv2.conv", ShiftConv2d(11, 12, ((11, 0, 1),))),
        (CSC(12, 20, stride=2), "shortcut.conv", nn.Conv2d(12, 19, 1, 2)),
        (StarShiftBlock(12), "f2.conv", nn.Conv2d(12, 35, 1)),
        (StarShiftBlock(12), "space", Shift2d(((13, 0, 1),))),
        (StarBlock(12), "g.conv", nn.Conv2d(48, 11, 1)),
    ):
        folded = _folded(module)
        owner, _, name = part.rpartition(".")
        setattr(folded.get_submodule(owner), name, other)
        with torch.no_grad():
            assert prepared(folded, x) is None
            with pytest.raises((RuntimeError, StarshiftError)):
                folded(x)


def test_inputs_that_do_not_fit_are_refused() -> None:
    folded = _folded(ConvBN(nn.Conv2d(3, 32, 5)))
    with torch.no_grad():
        assert prepared(folded, torch.randn(1, 3, 5, 5)) is not None
        for shape in ((1, 4, 9, 9), (1, 1, 9, 9), (1, 3, 4, 9), (1, 3, 2, 2)):
            with pytest.raises(StarshiftError, match="cannot take an input"):
                folded(torch.randn(shape))
        elsewhere = copy.deepcopy(folded).to("meta")
        assert prepared(elsewhere, torch.randn(1, 3, 5, 5)) is None
