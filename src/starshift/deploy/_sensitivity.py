# SPDX-License-Identifier: Apache-2.0
"""Which layers suffer most from int8: each quantised alone, in PyTorch, and its effect on the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from starshift.deploy._program import export_program
from starshift.deploy._target import relative_error

LAYERS = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)


@torch.no_grad()
def by_sensitivity(model: nn.Module, images: Tensor) -> list[str]:
    """Names of the layers with weights (as in ``state_dict``, without ``.weight``), the most sensitive first.

    A layer is quantised as the runtimes do: weights symmetric with a scale for each output channel, what comes in and
    goes out asymmetric with one scale. What is measured is the largest change of a logit of these ``images``.
    """
    graph = export_program(model, images[:2]).module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    expected = graph(images)
    errors: dict[str, float] = {}
    for node in graph.graph.nodes:
        name = layer_of(node)
        if name is not None:
            found = _OneInt8(graph, node).run(images)
            errors[name] = max(errors.get(name, 0.0), relative_error(found, expected))
    return sorted(errors, key=lambda name: -errors[name])


def layer_of(node: fx.Node) -> str | None:
    """The layer whose weight ``node`` multiplies by; None where it is no convolution and no linear map."""
    if node.target not in LAYERS:
        return None
    source: Any = node.args[1]
    while source.op != "get_attr":  # a part of a weight, as DemoNet's blocks take
        source = source.all_input_nodes[0]
    return str(source.target).removesuffix(".weight")


class _OneInt8(fx.Interpreter):
    """Runs a graph with one of its layers quantised."""

    def __init__(self, graph: fx.GraphModule, chosen: fx.Node) -> None:
        super().__init__(graph)
        self._chosen = chosen

    def run_node(self, n: fx.Node) -> Any:
        if n is not self._chosen:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        x, weight, *rest = args
        return _activations(n.target(_activations(x), _weights(weight), *rest, **kwargs))  # type: ignore[operator]


def _activations(x: Tensor) -> Tensor:
    low, high = x.amin().clamp_max(0), x.amax().clamp_min(0)
    scale = ((high - low) / 255).clamp_min(1e-12)
    zero = (-low / scale).round()
    return ((x / scale + zero).round().clamp(0, 255) - zero) * scale


def _weights(weight: Tensor) -> Tensor:
    scale = weight.flatten(1).abs().amax(1).clamp_min(1e-12).view(-1, *[1] * (weight.ndim - 1)) / 127
    return (weight / scale).round() * scale
