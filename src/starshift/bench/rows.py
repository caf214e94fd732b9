# SPDX-License-Identifier: Apache-2.0
"""Results as rows of CSV files: what was measured, on which machine, with which versions and which commit."""

from __future__ import annotations

import csv
import datetime
import hashlib
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from starshift.errors import StarshiftError
from starshift.machine import machine_facts, source_commit, versions


def provenance() -> dict[str, Any]:
    """Date (UTC), commit, machine and versions: the columns that every row has."""
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    return {"date": date, "commit": source_commit(), **machine_facts(), **versions()}


def append_row(path: str | Path, row: Mapping[str, Any]) -> None:
    """Add a row to a CSV file, which is made where it is missing. A new column is added at the end, empty in the old
    rows. Processes that write at the same time wait for each other.

    Raises:
        StarshiftError: the file is there but is no table with a header, or cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            columns, rows = _kept(path)
            columns += [name for name in row if name not in columns]
            written = _beside(path)
            with open(written, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
                writer.writeheader()
                writer.writerows([*rows, dict(row)])
            written.replace(path)
    except OSError as error:
        raise StarshiftError(f"cannot write {path}: {error.strerror or error}") from error


def check_appendable(path: str | Path) -> None:
    """Find out, before anything is measured, whether :func:`append_row` could write there; leaves nothing behind.

    Raises:
        StarshiftError: as :func:`append_row`.
    """
    path = Path(path)
    made = [folder for folder in path.parents if not folder.exists()]  # the deepest first
    try:
        _kept(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            _beside(path).touch()
            _beside(path).unlink()
    except OSError as error:
        raise StarshiftError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # there is none, or another process has put something there
            for folder in made:
                folder.rmdir()


def _kept(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """As :func:`read_rows`; nothing, where there is no file yet or an empty one."""
    return read_rows(path) if path.exists() and path.stat().st_size else ([], [])


def _lock(path: Path) -> FileLock:
    """Held by the process that writes this file; not beside it, where people keep their results."""
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir(), f"starshift-rows-{name}.lock"), mode=0o666)  # whoever writes there


def _beside(path: Path) -> Path:
    """Where rows are written before they take the file's place."""
    return path.with_name(path.name + ".part")


def read_rows(path: str | Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and the rows of a CSV file.

    Raises:
        StarshiftError: it is no CSV file in UTF-8, a row has more fields than there are columns, or a column's name is
            empty.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets begin theirs with a mark
            reader = csv.DictReader(file)
            columns, rows = list(reader.fieldnames or []), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise StarshiftError(f"{path} is not a CSV file in UTF-8: save it as one, or move it away") from error
    if not all(columns) or any(None in row for row in rows):
        raise StarshiftError(f"{path} is not a table with a header: move it away")
    return columns, rows
