# SPDX-License-Identifier: Apache-2.0
"""From what a user types (files, folders, patterns, ``-``) to a stream of image files."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from starshift.data.folder import EXTENSIONS, walk


@dataclass(frozen=True)
class Found:
    """A file to read, or the reason why what was named yields none."""

    path: str
    error: str | None = None


def expand(paths: Iterable[str | Path]) -> Iterator[Found]:
    """Yield files in the order named; a folder's are sorted by path.

    A name that exists is taken as it is, also with ``*`` in it; else as a pattern (``**`` descends). Of a folder, all
    depths count, and files with the suffix of an image that are not hidden. ``-`` reads one name a line from stdin, of
    any bytes.
    What yields nothing becomes one :class:`Found` with an error, so that nothing is lost in silence.
    """
    for path in paths:
        text = str(path)
        if text == "-":
            if hasattr(sys.stdin, "reconfigure") and sys.stdin.errors != "surrogateescape":
                sys.stdin.reconfigure(errors="surrogateescape")
            yield from expand(line.rstrip("\r\n") for line in sys.stdin if line.strip())
        elif os.path.isdir(text):
            yield from _or_error(_images_in(text), text, "no images in this folder")
        elif os.path.exists(text):
            yield Found(text)
        elif glob.has_magic(text):
            yield from _or_error(_matches(text), text, "nothing matches")
        else:
            yield Found(text, "no such file")


def _matches(pattern: str) -> Iterator[Found]:
    for match in sorted(glob.iglob(pattern, recursive=True)):
        if os.path.isfile(match):
            yield Found(match)


def _images_in(folder: str) -> Iterator[Found]:
    for parent, files in walk(folder):
        for file in sorted(files):
            if os.path.splitext(file)[1].lower() in EXTENSIONS:
                yield Found(os.path.join(parent, file))


def _or_error(found: Iterator[Found], name: str, error: str) -> Iterator[Found]:
    first = next(found, None)
    if first is None:
        yield Found(name, error)
        return
    yield first
    yield from found
