# SPDX-License-Identifier: Apache-2.0
"""Nothing here: the block takes parameters that no random tensor can stand for (variances); tests/ops/test_star_block.py
has its cases."""

from __future__ import annotations

from starshift.ops._case import Case

CASES: dict[str, list[Case]] = {}
