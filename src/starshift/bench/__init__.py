# SPDX-License-Identifier: Apache-2.0
"""Measuring: paired timings, rows of results with the machine and versions beside them, and one suite a file."""

from __future__ import annotations

from starshift.bench.rows import append_row, provenance, read_rows

__all__ = ["append_row", "provenance", "read_rows"]
