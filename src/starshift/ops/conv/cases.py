# SPDX-License-Identifier: Apache-2.0
"""None here, since it is no operator: tests/layers/test_prepared.py has its cases."""

from __future__ import annotations

from starshift.ops._case import Case

CASES: dict[str, list[Case]] = {}
