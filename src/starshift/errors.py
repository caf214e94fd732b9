# SPDX-License-Identifier: Apache-2.0
"""Errors a user can mend: every one says what was wrong and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StarshiftError(Exception):
    """A mistake in the input (files, names, options), not in the program: the command line prints no traceback."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the choice most like ``name``, or an empty string where none is alike."""
    found = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""


def quoted(names: Iterable[str]) -> str:
    """Return up to eight of ``names`` in quotes, and how many more there are."""
    listed = [repr(name) for name in names]
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
