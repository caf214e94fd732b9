# SPDX-License-Identifier: Apache-2.0
"""What the networks' operators are and do, measured. Functions return plain values; drawing is left to the caller.

* The star's implicit dimension: ``star_coefficients`` and ``monomials`` (a layer written out), ``implicit_rank``
  (numeric rank beside the count), ``exact_degree`` (of stacked layers, in rational arithmetic), ``star_kernel`` and
  ``estimate_kernel`` (the polynomial kernel of random features).
* Coefficients of trained blocks: ``coefficient_stats``, ``block_coefficients``; the penalty that shapes them is
  ``starshift.layers.coefficient_penalty``.
* Decision boundaries: ``two_moons``, ``fit_classifier`` (2-D DemoNets and the paper's SVMs), ``decision_grid``,
  ``accuracy``.
* Shift groups: ``group_redundancy`` (correlation of channels), ``group_contributions`` (accuracy lost without a group's
  shift, and its weights), ``allocations`` (channels for each shift, as the models' option ``offsets``).
* Compression: ``low_rank`` (1x1 convolutions in two factors), ``int8_model`` and ``pack_int8`` (weights of one byte),
  ``size_in_bytes``.
"""

from __future__ import annotations

from starshift.analysis._measure import ChannelStatistics
from starshift.analysis.allocation import MEASURES, allocate, allocations
from starshift.analysis.boundaries import (
    CLASSIFIERS,
    Grid,
    Moons,
    accuracy,
    decision_grid,
    fit_classifier,
    fit_network,
    score,
    two_moons,
)
from starshift.analysis.coefficients import CoefficientStats, block_coefficients, coefficient_stats, form_eigenvalues
from starshift.analysis.compression import int8_model, pack_int8, size_in_bytes, unpack_int8
from starshift.analysis.degree import degrees, exact_degree, integer_layers
from starshift.analysis.expansion import (
    monomial_count,
    monomial_indices,
    monomials,
    published_stacked_log10,
    stacked_count,
    star_coefficients,
)
from starshift.analysis.kernel import KernelEstimate, estimate_kernel, star_kernel
from starshift.analysis.low_rank import FactoredLayer, low_rank
from starshift.analysis.rank import CASES, ImplicitRank, expected_rank, implicit_rank
from starshift.analysis.shift_groups import (
    GroupContribution,
    GroupRedundancy,
    group_contributions,
    group_redundancy,
    shift_layers,
    top1,
    zeroed,
)
from starshift.layers import Branches, coefficient_penalty, find_branches

__all__ = [
    "CASES",
    "CLASSIFIERS",
    "MEASURES",
    "Branches",
    "ChannelStatistics",
    "CoefficientStats",
    "FactoredLayer",
    "Grid",
    "GroupContribution",
    "GroupRedundancy",
    "ImplicitRank",
    "KernelEstimate",
    "Moons",
    "accuracy",
    "allocate",
    "allocations",
    "block_coefficients",
    "coefficient_penalty",
    "coefficient_stats",
    "decision_grid",
    "degrees",
    "estimate_kernel",
    "exact_degree",
    "expected_rank",
    "find_branches",
    "fit_classifier",
    "fit_network",
    "form_eigenvalues",
    "group_contributions",
    "group_redundancy",
    "implicit_rank",
    "int8_model",
    "integer_layers",
    "low_rank",
    "monomial_count",
    "monomial_indices",
    "monomials",
    "pack_int8",
    "published_stacked_log10",
    "score",
    "shift_layers",
    "size_in_bytes",
    "stacked_count",
    "star_coefficients",
    "star_kernel",
    "top1",
    "two_moons",
    "unpack_int8",
    "zeroed",
]
