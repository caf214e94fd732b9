# SPDX-License-Identifier: Apache-2.0
"""What a result was measured on: the machine and the versions of what matters. Imports nothing heavy."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "timm", "lightning", "starshift")


@lru_cache(maxsize=1)
def machine_facts() -> dict[str, str | int | float]:
    """``cpu`` (model name), ``cores`` (that this process may use), ``memory_gb``, ``os``; and ``gpu`` where PyTorch
    is loaded and sees one."""
    facts: dict[str, str | int | float] = {
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_gb": _memory_gb(),
        "os": f"{platform.system()} {platform.machine()}",
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name(0)
    return facts


def versions() -> dict[str, str]:
    """Versions of Python and of the :data:`PACKAGES` that are installed, by name."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def checkout() -> Path | None:
    """The root of the git checkout that this package runs from; None for an installed one, wherever that lies."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / ".git").exists() else None


def source_commit(folder: Path | None = None) -> str:
    """The commit of the sources, twelve digits, with ``+`` where they have uncommitted changes; empty outside a
    checkout."""
    folder = folder or checkout()
    if folder is None:
        return ""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *args], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", git("rev-parse", "--show-cdup") + "src")
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + ("+" if changed else "")


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_decoders() -> int:
    """Processes or threads that decode images beside a network: a core is left to it, and eight feed most."""
    return min(8, max(0, cores() - 1))


def cpu_name() -> str:
    """The processor's model name; one without a number, as virtual machines have it, with its family and model."""
    facts = _cpu_facts()
    name = facts.get("model name", "")
    if name and "model" in facts and not any(letter.isdigit() for letter in name):
        return f"{name} (family {facts['cpu family']}, model {facts['model']})"
    return name or platform.processor() or platform.machine()


def is_amd() -> bool:
    """Whether the processor is one of AMD's."""
    facts = _cpu_facts()
    return "AuthenticAMD" in (facts["vendor_id"] if "vendor_id" in facts else platform.processor())


def _cpu_facts() -> dict[str, str]:
    """What Linux tells of the first core."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return {}
    lines = (line.partition(":") for line in info.read_text(errors="replace").split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _memory_gb() -> float:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return 0.0
