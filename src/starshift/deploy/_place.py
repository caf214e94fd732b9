# SPDX-License-Identifier: Apache-2.0
"""Exported files, some of which are folders: measured, put in place whole, removed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from starshift.errors import StarshiftError


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def remove(path: Path) -> None:
    """Remove a file, or a folder with all in it; nothing there is well too."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def put_in_place(partial: Path, final: Path) -> None:
    """Rename ``partial`` to ``final``, over what was there: whole or not at all.

    Raises:
        StarshiftError: a folder is there and ``partial`` is a file, or the other way round.
    """
    if final.exists() and final.is_dir() != partial.is_dir():
        kinds = ("folder", "file") if final.is_dir() else ("file", "folder")
        raise StarshiftError(f"{final} is a {kinds[0]}, and what was exported is a {kinds[1]}: give another --out")
    if not final.is_dir():
        os.replace(partial, final)
        return
    before = final.with_name(f".replaced-{os.getpid()}-{final.name}")  # a folder cannot be renamed over another
    os.replace(final, before)
    try:
        os.replace(partial, final)
    except OSError:
        os.replace(before, final)
        raise
    shutil.rmtree(before)
