# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime Web, kept in a cache folder: from its npm package at a pinned version, checked, and never from a CDN."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from starshift.errors import StarshiftError

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""SHA-512 of the package's archive in base64, as the npm registry states it."""
FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
"""What the page loads: the build for WebAssembly alone, and the larger one for WebGPU."""
FETCH_S = 300


def cache() -> Path:
    """The folder that holds this and the archive, where one was put there by hand."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "starshift"


def kept() -> Path | None:
    """The folder with :data:`FILES` where they were fetched before."""
    place = cache() / f"{PACKAGE}-{VERSION}"
    return place if all((place / name).is_file() for name in FILES) else None


def folder() -> Path:
    """As :func:`kept`; fetched first where they are missing.

    Raises:
        StarshiftError: they are not there and cannot be fetched; the message has the command that fetches them.
    """
    found = kept()
    if found is not None:
        return found
    place, archive = cache() / f"{PACKAGE}-{VERSION}", cache() / f"{PACKAGE}-{VERSION}.tgz"
    with tempfile.TemporaryDirectory(prefix="starshift-npm-") as temporary:
        if not archive.is_file():
            archive = _pack(Path(temporary))
        _unpack(archive, place)
    return place


def _pack(target: Path) -> Path:
    command = f"npm pack {PACKAGE}@{VERSION} --pack-destination {cache()}"
    npm = shutil.which("npm")
    if npm is None:
        raise StarshiftError(
            f"the page needs {PACKAGE} {VERSION}, and there is no npm here to fetch it. Where there is one, run:"
            f" mkdir -p {cache()} && {command}"
        )
    try:
        subprocess.run(
            [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(target)],
            cwd=target,
            capture_output=True,
            text=True,
            check=True,
            timeout=FETCH_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", "") or error).strip().splitlines()
        raise StarshiftError(
            f"{PACKAGE} {VERSION} cannot be fetched ({said[0] if said else type(error).__name__}). Where there is a"
            f" network, run: mkdir -p {cache()} && {command}"
        ) from error
    return target / f"{PACKAGE}-{VERSION}.tgz"


def _unpack(archive: Path, place: Path) -> None:
    """Put :data:`FILES` in place, all or none, if the archive is the one that is meant."""
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != INTEGRITY:
        raise StarshiftError(f"{archive} is not {PACKAGE} {VERSION}: its SHA-512 is {found}. Remove it")
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        with tarfile.open(archive) as package:
            for name in FILES:
                member = package.extractfile(f"package/dist/{name}")
                if member is None:
                    raise StarshiftError(f"{archive} holds no dist/{name}")
                (partial / name).write_bytes(member.read())
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
