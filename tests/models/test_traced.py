# SPDX-License-Identifier: Apache-2.0
"""One network of each class traced for export and compiled: plain operators only, any batch, the same logits."""

from __future__ import annotations

import pytest
import torch

from starshift.layers import fold_batchnorm
from starshift.models._registry import variants
from tests.models.helpers import randomise, small
from tests.tolerance import assert_close

SMALLEST = {v.cls: name for name, v in sorted(variants().items(), reverse=True) if "110" not in name}


@pytest.mark.parametrize("name", sorted(SMALLEST.values()))
def test_export_with_any_batch(name: str) -> None:
    model = randomise(small(name))
    folded = fold_batchnorm(model)
    side = 2 * model.min_size if model.min_size > 1 else 1
    images = torch.randn(5, model.in_chans, side, side)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(folded, (images[:2],), dynamic_shapes=({0: batch},))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [target for target in called if "starshift" in target]
    with torch.no_grad():
        assert_close("exported", program.module()(images), model(images))


@pytest.mark.parametrize("name", ["starnet_s050", "shiftresnet20"])
def test_compiled_training_step(name: str) -> None:
    model = small(name)
    images = torch.randn(2, 3, 32, 32)
    expected = torch.autograd.grad(model(images).square().sum(), model.head.weight)[0]
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    got = torch.autograd.grad(compiled(images).square().sum(), model.head.weight)[0]
    assert_close("gradient", got, expected)
