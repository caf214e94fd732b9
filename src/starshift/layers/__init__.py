# SPDX-License-Identifier: Apache-2.0
"""``nn.Module`` layers over the operators, one a file. Those with batch norm fold it away themselves (``Foldable``)."""

from __future__ import annotations

from starshift.layers.activation import activation
from starshift.layers.coefficients import PENALTIES, Branches, coefficient_penalty, find_branches
from starshift.layers.conv_bn import ConvBN
from starshift.layers.csc import CSC, PreActCSC
from starshift.layers.demo_block import DemoBlock
from starshift.layers.depthwise import DepthwiseConv2d
from starshift.layers.fixed_shift import fix_shifts, module_offsets
from starshift.layers.folding import Foldable, fold_batchnorm, fuse_conv_bn_
from starshift.layers.learned_shift import SHIFTS, LearnedShift2d, LearnedShiftConv2d, displacement_penalty
from starshift.layers.shift import ASSIGNMENTS, Shift2d, ShiftConv2d, make_offsets
from starshift.layers.star_block import LAYOUTS, MODES, StarBlock
from starshift.layers.star_shift_block import SPACES, StarShiftBlock

__all__ = [
    "ASSIGNMENTS",
    "CSC",
    "LAYOUTS",
    "MODES",
    "PENALTIES",
    "SHIFTS",
    "SPACES",
    "Branches",
    "ConvBN",
    "DemoBlock",
    "DepthwiseConv2d",
    "Foldable",
    "LearnedShift2d",
    "LearnedShiftConv2d",
    "PreActCSC",
    "Shift2d",
    "ShiftConv2d",
    "StarBlock",
    "StarShiftBlock",
    "activation",
    "coefficient_penalty",
    "displacement_penalty",
    "find_branches",
    "fix_shifts",
    "fold_batchnorm",
    "fuse_conv_bn_",
    "make_offsets",
    "module_offsets",
]
