# SPDX-License-Identifier: Apache-2.0
"""The one tolerance table: relative root mean square error allowed between two computations of one thing, by dtype."""

from __future__ import annotations

import torch
from torch import Tensor

RELATIVE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def assert_close(
    name: str, actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None, times: float = 1
) -> None:
    """Compare by relative RMS error at the tolerance of ``dtype`` (default: ``actual``'s); NaN and Inf must agree.

    ``times`` as much is allowed where rounding adds up through a whole network.
    """
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    a, e = actual.detach().double(), expected.detach().double()
    finite = e.isfinite()
    assert torch.equal(finite, a.isfinite()), f"{name}: not finite in other places"
    if not finite.any():
        return
    error = (a - e)[finite].square().mean().sqrt()
    scale = e[finite].square().mean().sqrt().clamp_min(1e-6)
    allowed = RELATIVE[dtype or actual.dtype] * times
    assert error <= allowed * scale, f"{name}: relative error {error / scale:.2e} above {allowed:.0e}"
