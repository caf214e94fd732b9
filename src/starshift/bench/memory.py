# SPDX-License-Identifier: Apache-2.0
"""Memory of this process, or of its GPU, in MB (2^20 bytes); not a number where the system does not tell."""

from __future__ import annotations

from pathlib import Path


def resident_mb(device: str) -> float:
    """In use now; on a GPU 0, as its peak counts from nothing."""
    return _status_mb("VmRSS") if device == "cpu" else 0.0


def forget_peak(device: str) -> None:
    """Let the peak count from now: what compilers needed in the first step is not what a step needs."""
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: str) -> float:
    """The most in use since :func:`forget_peak`."""
    if device == "cpu":
        return _status_mb("VmHWM")
    import torch

    return torch.cuda.max_memory_allocated() / 2**20


def _status_mb(field: str) -> float:
    """A field of Linux's account of this process."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")), float("nan"))
