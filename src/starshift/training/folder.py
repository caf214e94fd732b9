# SPDX-License-Identifier: Apache-2.0
"""The run folder: made before anything costs time, written so that no file is ever half new."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from starshift.data import Fingerprint
from starshift.errors import StarshiftError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class Run:
    """A run folder and what its ``summary.json`` says.

    Attributes:
        path: the folder; ``load_model(run.path)`` loads its network.
        summary: best_top1 (per cent), best_epoch, epochs, seconds, images_per_s, params, macs, classes, ... .
    """

    path: Path
    summary: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Read a finished run.

        Raises:
            StarshiftError: no run folder, or one whose training has not ended.
        """
        try:
            return cls(Path(path), json.loads((Path(path) / "summary.json").read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise StarshiftError(f"{path} holds no finished run (no readable summary.json)") from error

    @property
    def best_top1(self) -> float:
        return self.summary["best_top1"]

    @property
    def best_epoch(self) -> int:
        return self.summary["best_epoch"]

    @property
    def status(self) -> str:
        return self.summary["status"]


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into one clear StarshiftError that names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise StarshiftError(
                f"no space left to write the run folder {folder}. The last complete checkpoint in it is untouched: free"
                f" some space, then go on with: starshift train --resume {folder}"
            ) from error
        if error.errno in NOT_ALLOWED:
            raise StarshiftError(
                f"cannot write the run folder {folder}: {error.strerror}. Choose another with --out"
            ) from error
        raise


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all: a neighbour first, on the disk for sure, then renamed over the old one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any] | Mapping[str, Any]]) -> None:
    """Write all rows anew, atomically; names that are not valid UTF-8 as the bytes they are."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([row[c] for c in columns] if isinstance(row, Mapping) else row)
    write_bytes(path, text.getvalue().encode(errors="surrogateescape"))


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def new_run_folder(out: str | Path | None, model: str, data: str) -> Path:
    """Make the folder (default ``runs/<model>-<data>-<n>``) and try that it can be written.

    Raises:
        StarshiftError: it exists and is not empty, or cannot be made or written.
    """
    if out is None:
        stem = "-".join(re.sub(r"[^\w.]+", "-", Path(part).name or part).strip("-") for part in (model, data))
        path = _first_free(Path("runs"), stem)
    else:
        path = Path(out).expanduser()
    with disk_errors(path):
        if path.is_dir() and _is_barren(path):
            shutil.rmtree(path)
        if path.is_dir() and any(path.iterdir()):
            known = (path / "checkpoints" / "last.ckpt").is_file()
            hint = f", or go on with it: starshift train --resume {path}" if known else ""
            raise StarshiftError(f"{path} exists and is not empty: choose another folder with --out{hint}")
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_bytes(path / "checkpoints" / "probe", b"writable")
        (path / "checkpoints" / "probe").unlink()
    return path


def _first_free(parent: Path, stem: str) -> Path:
    """Make and return the first of ``stem-1``, ``stem-2`` ... that is not there; another process may be at it too."""
    with disk_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        for n in count(1):
            with suppress(FileExistsError):
                (path := parent / f"{stem}-{n}").mkdir()
                return path
    raise AssertionError("numbers do not end")


def _is_barren(run: Path) -> bool:
    """Whether a run was begun there that ended before its first checkpoint, and nothing else lies there."""
    names = {entry.name for entry in run.iterdir()}
    begun = "config.yaml" in names and names <= {"config.yaml", "checkpoints", "tensorboard"}
    return begun and not any((run / "checkpoints").glob("*"))


def run_to_resume(resume: str | Path) -> Path:
    """The run folder that ``--resume`` means: the folder, or the last checkpoint in it.

    Raises:
        StarshiftError: there is nothing to go on with, or another checkpoint is named.
    """
    path = Path(resume).expanduser()
    if path.suffix == ".ckpt":
        if not path.is_file():
            raise StarshiftError(f"--resume {resume}: there is no such checkpoint")
        if path.name != "last.ckpt":
            raise StarshiftError(
                f"--resume {resume}: a run goes on from its last.ckpt alone, where all is kept; to start another run "
                f"from these weights: --checkpoint {resume} and the --model that they are of"
            )
        path = path.parent.parent
    if not path.is_dir():
        raise StarshiftError(f"--resume {resume}: there is no such run folder")
    for name in ("config.yaml", "checkpoints/last.ckpt"):
        if not (path / name).is_file():
            raise StarshiftError(
                f"--resume {path}: it holds no {name}, so there is nothing to go on with; start anew with another --out"
            )
    return path


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's checkpoints, replaced atomically, and read without running code from them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with disk_errors(Path(path).parent.parent):
            write_bytes(Path(path), content.getbuffer())

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        return _read_checkpoint(path, map_location=map_location)


def _read_checkpoint(path: Any, **how: Any) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, weights_only=True, **how)
    except Exception as error:  # torch raises nearly every kind on a damaged file
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise StarshiftError(f"{path} is damaged or no checkpoint of a run ({reason})") from error
    if not isinstance(checkpoint, dict) or "epoch_so_far" not in checkpoint:
        raise StarshiftError(f"{path} is no checkpoint of a run: use it as --checkpoint to start from its weights")
    return checkpoint


def data_to_go_on_with(run: Path, processes: int, epochs: int) -> Fingerprint:
    """The data that the run used last.

    ``epochs`` must not have been passed, and ``processes`` must be able to go on: an epoch that was broken off is
    divided among as many as before, since each knows only what itself has done of it.

    Raises:
        StarshiftError: they cannot, with what to do; or the checkpoint is damaged.
    """
    checkpoint = _read_checkpoint(run / "checkpoints" / "last.ckpt", map_location="cpu", mmap=True)
    so_far = checkpoint["epoch_so_far"]
    before = so_far["processes"]
    if so_far["batches"] and before != processes:
        raise StarshiftError(
            f"{run} was stopped within an epoch, on {before} device(s), and goes on with as many, not {processes}: "
            f"resume with --devices {before} (on the CPU cpu:{before}); the number may change where an epoch has ended"
        )
    keeper = checkpoint["callbacks"]["EpochKeeper"]
    done = len(keeper["rows"])
    if epochs < done + bool(so_far["batches"]):
        begun = f"has done {done} epoch(s)" + (" and a part of the next" if so_far["batches"] else "")
        raise StarshiftError(f"{run} {begun}: it cannot go on to --epochs {epochs}; give more, or leave it out")
    return Fingerprint.from_dict(keeper["data"])


def copy_checkpoint(source: Path, target: Path) -> None:
    """Let ``target`` name the same bytes as ``source`` does now; a later replacement of ``source`` leaves it alone."""
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:  # a file system without hard links
        write_bytes(target, source.read_bytes())
    else:
        partial.replace(target)
