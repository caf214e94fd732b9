# SPDX-License-Identifier: Apache-2.0
"""Accelerated networks are the networks they were: same numbers, same names, and back again."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import starshift
from starshift.ops import use_kernel
from tests.tolerance import assert_close

CLASSES = 5
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "test_efficientnet": lambda: timm.create_model("test_efficientnet", num_classes=CLASSES),
    "mobilenetv3_small_050": lambda: timm.create_model("mobilenetv3_small_050", num_classes=CLASSES, drop_rate=0.0),
    "convnext": lambda: timm.create_model(
        "convnext_atto", num_classes=CLASSES, depths=(1, 1, 2, 1), dims=(8, 16, 24, 40)
    ),
    "starnet_s050": lambda: timm.create_model("starnet_s050", num_classes=CLASSES),
    "tf_efficientnet_lite0": lambda: timm.create_model("tf_efficientnet_lite0", num_classes=CLASSES),
    "torchvision_mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=CLASSES, dropout=0.0),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def make(name: str) -> nn.Module:
    """Seeded, with batch norms that have statistics of their own."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    return model


def images(n: int = 8, size: int = 32) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def train(model: nn.Module, steps: int) -> Tensor:
    """Losses of ``steps`` steps."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    generator = torch.Generator().manual_seed(2)
    losses = []
    for _ in range(steps):
        x = torch.randn(16, 3, 32, 32, generator=generator)
        target = torch.randint(0, CLASSES, (16,), generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def strides(model: nn.Module) -> list[tuple[int, ...]]:
    return [p.stride() for p in model.parameters()]


@every_network
def test_same_output_in_evaluation(name: str) -> None:
    model = make(name).eval()
    with torch.no_grad():
        expected = model(images())
        assert starshift.accelerate(model).replaced
        assert_close("output", model(images()), expected)
        with use_kernel("reference"):
            assert_close("output of the reference", model(images()), expected)


@pytest.mark.parametrize("name", ["test_efficientnet", "convnext", "starnet_s050", "torchvision_mobilenet_v3_small"])
def test_training_follows_the_same_curve(name: str) -> None:
    """50 steps of the original and of the accelerated network, from the same start with the same images."""
    model = make(name)
    accelerated = copy.deepcopy(model)
    starshift.accelerate(accelerated)
    losses, actual = train(model, 50), train(accelerated, 50)
    assert losses.std() > 0
    assert_close("losses", actual, losses, torch.float16)
    for (name, a), b in zip(model.state_dict().items(), accelerated.state_dict().values(), strict=True):
        assert a.dtype == b.dtype
        if "running" in name or "tracked" in name:
            assert_close(name, b.double(), a.double(), torch.float16)


@every_network
def test_undone_it_is_the_model_that_it_was(name: str) -> None:
    model = make(name).eval()
    classes, layout = [type(m) for m in model.modules()], strides(model)
    parameters = list(model.parameters())
    with torch.no_grad():
        expected = model(images())
        report = starshift.accelerate(model)
        model(images())
        report.undo()
        assert [type(m) for m in model.modules()] == classes
        assert strides(model) == layout
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        assert torch.equal(model(images()), expected)


@pytest.mark.parametrize("name", ["repvit_m1", "fasternet_t0", "edgenext_xx_small", "mobilenetv4_conv_small"])
def test_further_families(name: str) -> None:
    """Output in evaluation, loss and every gradient of a training step."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES).eval()
    accelerated = copy.deepcopy(model)
    assert starshift.accelerate(accelerated).replaced
    x, target = images(4, 64), torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        assert_close("output", accelerated(x), model(x))
    losses = [F.cross_entropy(m.train()(x), target) for m in (model, accelerated)]
    assert_close("loss", losses[1], losses[0])
    grads = [
        dict(zip((k for k, _ in m.named_parameters()), torch.autograd.grad(loss, list(m.parameters())), strict=True))
        for loss, m in zip(losses, (model, accelerated), strict=True)
    ]
    compared = 0
    for key, expected in grads[0].items():
        if expected.square().mean().sqrt() > 1e-5:  # what vanishes is rounding: scaled layers, a bias before a norm
            assert_close(f"gradient of {key}", grads[1][key], expected, torch.bfloat16)  # values move across kinks
            compared += 1
    assert compared >= 30


def test_decelerate_finds_what_was_replaced() -> None:
    model = make("mobilenetv3_small_050")
    classes = [type(m) for m in model.modules()]
    replaced = starshift.accelerate(model, channels_last=False).replaced
    assert starshift.decelerate(model) == len(replaced)
    assert [type(m) for m in model.modules()] == classes
    assert starshift.decelerate(model) == 0


@every_network
def test_accelerating_twice_does_nothing_more(name: str) -> None:
    model = make(name)
    assert starshift.accelerate(model).replaced
    kinds = [type(m) for m in model.modules()]
    assert starshift.accelerate(model).replaced == []
    assert [type(m) for m in model.modules()] == kinds


@every_network
def test_copies_pickles_and_state_dicts(name: str) -> None:
    model = make(name).eval()
    state, parts = model.state_dict(), [n for n, _ in model.named_modules()]
    starshift.accelerate(model)
    assert list(model.state_dict()) == list(state) and [n for n, _ in model.named_modules()] == parts
    model.load_state_dict(state)
    assert repr(model)
    with torch.no_grad():
        expected = model(images(2))
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]
            assert torch.equal(other(images(2)), expected)


def test_hooks_see_what_they_saw() -> None:
    """Also hooks on an activation, which otherwise is computed inside the norm."""
    model = make("torchvision_mobilenet_v3_small").eval()
    watched = [
        n for n, m in model.named_modules() if isinstance(m, nn.Hardswish | nn.ReLU | nn.BatchNorm2d | nn.Conv2d)
    ]

    def seen() -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        handles = [
            model.get_submodule(n).register_forward_hook(lambda m, i, o, n=n: outputs.update({n: o.clone()}))
            for n in watched
        ]
        with torch.no_grad():
            model(images(2))
        for handle in handles:
            handle.remove()
        return outputs

    expected = seen()
    starshift.accelerate(model)
    actual = seen()
    assert list(actual) == list(expected)
    for name, output in expected.items():
        assert_close(name, actual[name], output)


@pytest.mark.parametrize("name", ["test_efficientnet", "convnext", "starnet_s050"])
def test_mixed_precision(name: str) -> None:
    """Under bfloat16 autocast, as near to float32 as the original is; parameters and their gradients stay float32."""
    model = make(name).train()
    accelerated = copy.deepcopy(model)
    starshift.accelerate(accelerated)
    exact = copy.deepcopy(model)(images(64))
    errors = []
    for network in (model, accelerated):
        with torch.autocast("cpu", torch.bfloat16):
            output = network(images(64))
        assert output.dtype == torch.bfloat16
        output.float().square().mean().backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in network.parameters())
        errors.append((output.float() - exact).norm())
    assert errors[1] <= 1.5 * errors[0]


@every_network
def test_channels_last_all_the_way(name: str) -> None:
    """No layer is handed a tensor of another layout, which its kernel would have to convert."""
    model = make(name).eval()
    starshift.accelerate(model)
    wrong = []

    def check(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not inputs[0].is_contiguous(memory_format=torch.channels_last):
            wrong.append(type(module).__name__)

    for module in model.modules():
        if type(module).__name__.startswith("Accelerated") and not isinstance(module, nn.Sequential):
            module.register_forward_pre_hook(check)
    with torch.no_grad():
        model(images(2))
    assert not wrong


def test_report_says_what_and_why() -> None:
    class Mine(nn.Conv2d):
        """Someone's own convolution."""

    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4),
        nn.BatchNorm2d(4),
        nn.ReLU6(),
        nn.Conv2d(4, 8, 3),
        nn.Conv2d(8, 16, 3, groups=8),
        Mine(16, 16, 3, groups=16),
        nn.Conv2d(16, 16, 3, groups=16, padding_mode="reflect", padding=1),
        nn.Conv2d(16, 16, 2, groups=16, padding="same"),
        nn.Conv2d(16, 16, 3, groups=16, dtype=torch.float64),
        nn.SyncBatchNorm(16),
        nn.Conv2d(16, 16, 1),
        nn.Conv2d(16, 16, 1, stride=2),
    )
    report = starshift.accelerate(model)
    assert {r.name: (r.kind, r.what) for r in report.replaced} == {
        "": ("Sequential", "norm and activation in a sequence as one"),
        "0": ("Conv2d", "depthwise convolution"),
        "1": ("BatchNorm2d", "batch norm with its activation"),
        "10": ("Conv2d", "pointwise convolution"),
    }
    assert {e.name: e.reason for e in report.left} == {
        "3": "mixes pixels and channels",
        "4": "groups != channels",
        "5": "is a Mine, whose forward may differ",
        "6": "padding_mode 'reflect'",
        "7": "uneven padding",
        "8": "float64",
        "9": "shares its statistics between processes",
        "11": "a pointwise convolution with stride or padding",
    }
    text = str(report)
    assert "4 layers replaced" in text and "Conv2d, left: float64" in text
    assert report.__rich__().row_count == len(text.splitlines()) - 1


def test_nothing_to_do() -> None:
    report = starshift.accelerate(nn.Linear(2, 2))
    assert not report.replaced and str(report).startswith("nothing was replaced")


def test_without_kernels_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starshift.ops._native.why_not", lambda: "they were not built")
    model = make("convnext").eval()
    with torch.no_grad():
        expected = model(images(2))
        assert "they were not built" in str(starshift.accelerate(model))
        with use_kernel("reference"):
            assert_close("output", model(images(2)), expected)
