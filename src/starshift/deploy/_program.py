# SPDX-License-Identifier: Apache-2.0
"""The network as a ``torch.export`` program, which most targets start from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from starshift.deploy._quiet import quiet

BATCH = "batch"


def export_program(
    model: nn.Module, example: Tensor, *, largest_batch: int | None = None
) -> torch.export.ExportedProgram:
    """Trace ``model`` with the batch size free, up to ``largest_batch`` where one is given.

    The traces say nothing of where the sources lie on this machine.
    """
    shapes = ({0: torch.export.Dim(BATCH, min=1, max=largest_batch)},)
    with quiet("torch.export"):
        program = torch.export.export(model, (example,), dynamic_shapes=shapes)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program
