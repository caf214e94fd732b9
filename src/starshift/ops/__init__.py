# SPDX-License-Identifier: Apache-2.0
"""The operators. One folder each: the public function, the plain-torch reference, cases worth testing, the derivation.

A kernel is one more file in an operator's folder, ``cpu.py`` or ``cuda.py``, which calls ``add_kernel``; it is found
by its name. ``infer.py`` is a form for fixed weights, laid out once, that folded layers call; ``conv`` is that alone.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from starshift.ops._operator import OPERATORS, kernel_status, kernels_switched, use_kernel
from starshift.ops.csc import csc
from starshift.ops.depthwise import depthwise_conv2d
from starshift.ops.norm import batch_norm_act
from starshift.ops.pointwise import pointwise_conv2d, pointwise_mlp
from starshift.ops.pointwise_norm import pointwise_norm_act
from starshift.ops.shift import (
    Offsets,
    grouped_offsets,
    interleaved_offsets,
    offsets_permutation,
    shift2d,
    shift_conv2d,
)
from starshift.ops.star import ACTIVATIONS, PLACEMENTS, star, star_mlp
from starshift.ops.stem import stem_conv2d

__all__ = [
    "ACTIVATIONS",
    "OPERATORS",
    "PLACEMENTS",
    "Offsets",
    "batch_norm_act",
    "csc",
    "depthwise_conv2d",
    "grouped_offsets",
    "interleaved_offsets",
    "kernel_status",
    "kernels_switched",
    "offsets_permutation",
    "pointwise_conv2d",
    "pointwise_mlp",
    "pointwise_norm_act",
    "shift2d",
    "shift_conv2d",
    "star",
    "star_mlp",
    "stem_conv2d",
    "use_kernel",
]

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    if _module.name.rpartition(".")[2] in ("cpu", "cuda"):
        import_module(_module.name)
