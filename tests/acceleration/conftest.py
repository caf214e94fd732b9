# SPDX-License-Identifier: Apache-2.0
"""The tests' images are small: without this, evaluation would leave the kernels alone."""

from __future__ import annotations

import pytest

from starshift.layers import norm

LEAST_INFERENCE = norm._LEAST_INFERENCE


@pytest.fixture(autouse=True)
def kernels_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "_LEAST_INFERENCE", 0)
