# SPDX-License-Identifier: Apache-2.0
"""None here: the block takes variances, which no random tensor can stand for. tests/layers/test_fused_star.py has its
cases; it is timed as a part of whole networks."""

from __future__ import annotations

from starshift.ops._case import Case

CASES: dict[str, list[Case]] = {}
