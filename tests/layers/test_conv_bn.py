# SPDX-License-Identifier: Apache-2.0
"""A convolution and its norm in training, where the bias between them is left out as on a GPU."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from starshift.layers import ConvBN, conv_bn
from starshift.ops import kernels_switched
from tests.tolerance import assert_close

Values = dict[str, Tensor]


@pytest.fixture
def without_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_bn, "_drops_biases", lambda x: True)


def made(momentum: float | None = 0.1) -> tuple[ConvBN, Tensor]:
    torch.manual_seed(0)
    layer = ConvBN(nn.Conv2d(6, 8, 3, 2, 1), act="relu6").to(memory_format=torch.channels_last)
    nn.init.normal_(layer.conv.bias, std=2)
    nn.init.normal_(layer.bn.weight)
    layer.bn.momentum = momentum
    return layer, torch.randn(3, 6, 9, 8).contiguous(memory_format=torch.channels_last)


def step(layer: ConvBN, x: Tensor) -> tuple[Tensor, Values]:
    """Output, gradients of all but the bias, and the norm's buffers after two steps."""
    layer(2 * x)
    out = layer(x)
    layer.zero_grad()
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    values: Values = {k: p.grad for k, p in layer.named_parameters() if p.grad is not None and k != "conv.bias"}
    return out.detach(), {**values, **{k: b.float() for k, b in layer.named_buffers()}}


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.usefixtures("without_bias")
def test_training_is_the_same_without_the_bias(kernels: bool, momentum: float | None) -> None:
    layer, x = made(momentum)
    plain = deepcopy(layer)
    plain.bn.register_forward_hook(lambda *_: None)  # someone who watches: layer by layer
    with kernels_switched(kernels):
        out, values = step(layer, x)
    expected, wanted = step(plain, x)
    assert_close("output", out, expected.double())
    for key, value in values.items():
        assert_close(key, value, wanted[key].double())
    assert layer.conv.bias.grad is not None and layer.conv.bias.grad.abs().max() < 1e-4
    layer.eval(), plain.eval()
    assert_close("evaluation", layer(x).detach(), plain(x).detach().double())


@pytest.mark.usefixtures("without_bias")
def test_a_bias_that_has_no_norm_is_added() -> None:
    conv = nn.Conv2d(6, 8, 3)
    x = torch.randn(2, 6, 5, 5)
    assert torch.equal(ConvBN(conv, bn=False)(x), conv(x))
