# SPDX-License-Identifier: Apache-2.0
"""The star block as one operator: the same numbers, statistics and random draws as layer by layer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from starshift.errors import StarshiftError
from starshift.layers import ConvBN, StarBlock, fold_batchnorm, fused_star
from starshift.layers.prepared import run_prepared
from starshift.ops import OPERATORS, _native, use_kernel
from tests.tolerance import assert_close

needs_kernels = pytest.mark.skipif(not _native.available(), reason="no compiled kernels on this machine")
CASES = {
    "starnet": ((3, 24, 9, 7), {}),
    "no-vector-fits": ((2, 17, 5, 11), {"expansion": 3, "drop_path": 0.4}),
    "kernel3": ((2, 8, 6, 6), {"kernel_size": 3, "act": "hardswish", "placement": "both"}),
    "product": ((2, 20, 4, 5), {"act": "gelu", "placement": "product"}),
    "many-chunks": ((2, 16, 25, 31), {}),
}
every_case = pytest.mark.parametrize("name", CASES)
both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def block(name: str, training: bool) -> tuple[StarBlock, Tensor]:
    """A block with random parameters and statistics, and an input whose channels are far from zero mean."""
    torch.manual_seed(0)
    shape, options = CASES[name]
    made = StarBlock(shape[1], **options).train(training)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for norm in made.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
    x = torch.randn(shape) + 3 * torch.randn(1, shape[1], 1, 1)
    return made, x.contiguous(memory_format=torch.channels_last)


def step(made: StarBlock, x: Tensor, fused: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Output, and the gradients and buffers after a backward."""
    torch.manual_seed(1)
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = made(x) if fused else made.by_layers(x)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (out.double() * weights.to(out.device)).sum().backward()
    values = {f"gradient of {k}": p.grad for k, p in made.named_parameters()}
    return out.detach(), {"gradient of x": x.grad, **values, **dict(made.named_buffers())}


def assert_values(values: dict[str, Tensor], expected: dict[str, Tensor], training: bool) -> None:
    """Gradients and buffers in float32 against those in float64."""
    for key, value in values.items():
        if training and key in ("gradient of dwconv.conv.bias", "gradient of g.conv.bias"):
            continue  # a batch norm follows: zero but for rounding
        assert_close(key, value.float(), expected[key], torch.float32)


@needs_kernels
@both_modes
@every_case
def test_equals_the_layers_in_float64(name: str, training: bool) -> None:
    made, x = block(name, training)
    expected_out, expected = step(copy.deepcopy(made).double(), x.double(), fused=False)
    assert fused_star.why_unfused(made, x) is None
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN, so that an unwritten output shows
    try:
        out, values = step(made, x, fused=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_close("output", out, expected_out, torch.float32)
    assert_values(values, expected, training)


@needs_kernels
@both_modes
def test_bfloat16_autocast(training: bool) -> None:
    made, x = block("starnet", training)
    expected_out, _ = step(copy.deepcopy(made), x, fused=False)
    with torch.autocast("cpu", torch.bfloat16):
        out, values = step(made, x, fused=True)
    assert out.dtype == torch.bfloat16
    assert_close("output", out, expected_out)
    assert all(v.isfinite().all() for v in values.values())


@both_modes
def test_reference_and_operator_agree_with_the_layers(training: bool) -> None:
    made, x = block("starnet", training)
    expected_out, expected = step(copy.deepcopy(made).double(), x.double(), fused=False)
    double = copy.deepcopy(made).double()
    with use_kernel("reference"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_star, "why_unfused", lambda *_: None)
        out, values = step(double, x.double(), fused=True)
    assert_close("output", out, expected_out)
    for key, value in values.items():
        assert_close(key, value.double(), expected[key].double(), torch.float32 if "conv.bias" in key else None)


@needs_kernels
@both_modes
def test_opcheck(training: bool) -> None:
    made, x = block("kernel3", training)
    seen: list[tuple] = []
    operator = OPERATORS["star_block"]
    run = operator.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operator, "run", lambda *args: (seen.append(args), run(*args))[1])
        made(x)
    args = [
        a.detach().clone().requires_grad_() if isinstance(a, Tensor) and i < 15 else a for i, a in enumerate(seen[0])
    ]
    torch.library.opcheck(operator.overload, args)


@needs_kernels
def test_compiled_equals_eager() -> None:
    torch._dynamo.reset()
    made, x = block("starnet", True)
    other = copy.deepcopy(made)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    assert_close("output", compiled(x), made(x))
    assert_close("mean", other.g.bn.running_mean, made.g.bn.running_mean)


@needs_kernels
def test_runs_by_layers_where_it_must() -> None:
    made, x = block("starnet", True)
    seen: list[str] = []
    handle = made.dwconv.register_forward_hook(lambda *_: seen.append("called"))
    assert fused_star.why_unfused(made, x) == "a hook on dwconv"
    made(x)
    assert seen == ["called"]
    handle.remove()
    assert fused_star.why_unfused(made, x) is None
    made.g.bn.eval()
    assert fused_star.why_unfused(made, x) == "parts in different modes"
    made.g.bn.train()
    made.g.bn = nn.SyncBatchNorm(24)
    assert fused_star.why_unfused(made, x) == "g.bn is SyncBatchNorm"
    made.g.bn = nn.Identity()
    assert fused_star.why_unfused(made, x) == "g.bn is Identity"
    with torch.autocast("cpu", torch.float16):
        assert fused_star.why_unfused(made, x) == "no kernel"
    assert "star_block" not in str(torch.export.export(block("starnet", False)[0], (x,)).graph)


@needs_kernels
def test_momentum_none_averages_over_batches() -> None:
    made, x = block("starnet", True)
    for norm in (made.dwconv.bn, made.g.bn):
        norm.momentum = None
    other = copy.deepcopy(made)
    for _ in range(3):
        made(x)
        other.by_layers(x)
    for (name, a), b in zip(made.named_buffers(), other.buffers(), strict=True):
        assert_close(name, a.float(), b.float())


def test_survives_pickling() -> None:
    made, x = block("starnet", False)
    assert torch.equal(pickle.loads(pickle.dumps(made))(x), made(x))


@needs_kernels
@every_case
def test_folded_block_runs_with_prepared_weights(name: str) -> None:
    made, x = block(name, training=False)
    expected = copy.deepcopy(made).double().by_layers(x.double()).detach()
    folded = fold_batchnorm(made)
    assert folded.folded and isinstance(folded.g.bn, nn.Identity)
    with torch.no_grad():
        assert run_prepared(folded, x) is not None
        assert_close("output", folded(x), expected, torch.float32)
        assert_close("again", folded(x), expected, torch.float32)
    assert_close("with gradients, by layers", folded(x).detach(), expected, torch.float32)
    assert run_prepared(folded, x) is None


@pytest.mark.parametrize("folded", [False, True])
def test_an_input_of_other_channels_is_refused(folded: bool) -> None:
    made, _ = block("starnet", training=False)
    made = fold_batchnorm(made) if folded else made
    for channels in (12, 48):
        with torch.no_grad(), pytest.raises((RuntimeError, StarshiftError)):
            made(torch.randn(1, channels, 7, 7))


def test_settings_that_only_layers_know_run_by_them() -> None:
    made, x = block("starnet", training=True)
    made.g.bn.track_running_stats = False
    assert "g.bn" in str(fused_star.why_unfused(made, x))
    made, x = block("starnet", training=True)
    with pytest.raises(ValueError, match="more than 1 value"):
        made(x[:1, :, :1, :1])
    made.dwconv.conv = nn.Conv2d(24, 24, 7, padding="same", groups=24)
    assert "dwconv.conv" in str(fused_star.why_unfused(made, x))
    assert made(x).shape == x.shape


def test_parts_that_do_more_than_a_convolution_are_called() -> None:
    x = torch.randn(2, 8, 7, 7)
    normed, active = (lambda part: ConvBN(part.conv)), (lambda part: ConvBN(part.conv, bn=False, act="gelu"))
    for replace in (nn.Sequential, normed, active):
        for part in ("f1", "f2", "dwconv2"):
            torch.manual_seed(0)
            made = StarBlock(8).eval()
            setattr(made, part, replace(getattr(made, part)).eval())
            assert fused_star.why_unfused(made, x)
            mixed = made.dwconv(x)
            product = nn.functional.relu6(made.f1(mixed)) * made.f2(mixed)
            assert_close(part, made(x), x + made.dwconv2(made.g(product)))


@pytest.mark.parametrize("part", ["f1", "f2", "g", "dwconv", "dwconv2"])
@pytest.mark.parametrize("mode", ["star", "sum"])
def test_a_hook_on_a_part_is_called(part: str, mode: str) -> None:
    made, x, seen = StarBlock(8, mode=mode).eval(), torch.randn(1, 8, 7, 7), []
    for one in (made, fold_batchnorm(made)):
        with torch.no_grad():
            expected = one(x)
            getattr(one, part).register_forward_hook(lambda *_: seen.append(part))
            assert_close("watched", one(x), expected)
    assert seen == [part, part]
