# SPDX-License-Identifier: Apache-2.0
"""What runs here: versions, devices, threads, kernels, optional packages, export formats."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from starshift import __version__
from starshift.machine import cores, cpu_name

BASE = ("torch", "torchvision", "timm", "lightning", "torchmetrics", "scikit-learn", "numpy", "pillow", "simplejpeg")


def info() -> dict[str, dict[str, Any]]:
    """Facts about this installation, as plain values for JSON.

    Returns:
        ``versions`` {package: version}, ``devices`` {device: what it is}, ``threads``, ``compiled kernels`` (their
        instruction set and threads, or why there are none), ``kernels`` {operator: {device: active kernel, or why there
        is none}}, ``optional`` {package: version or how to install it}, ``formats``
        {export format: "available" or why not}.
    """
    from starshift.deploy import targets
    from starshift.ops import kernel_status

    return {
        "versions": _versions(),
        "devices": _devices(),
        "threads": _threads(),
        "compiled kernels": _compiled(),
        "kernels": dict(kernel_status()),
        "optional": _optional(),
        "formats": {name: target.missing() or "available" for name, target in targets().items()},
    }


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _versions() -> dict[str, str]:
    return {
        "starshift": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        **{package: _installed(package) or "not installed" for package in BASE},
    }


def _devices() -> dict[str, str]:
    import torch

    devices = {"cpu": f"{cpu_name()}, {os.cpu_count()} cores"}
    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        devices[f"cuda:{i}"] = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    return devices


def _threads() -> dict[str, Any]:
    import torch

    return {
        "torch": torch.get_num_threads(),
        "usable cores": cores(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _compiled() -> dict[str, Any]:
    from starshift.ops import _native

    if not _native.available():
        return {"none": f"{_native.why_not()}; until then plain PyTorch runs in their place"}
    return {"instruction set": _native.instruction_set(), "threads": _native.threads()}


def _optional() -> dict[str, str]:
    """The packages of every extra of this distribution, as its own metadata declares them."""
    found: dict[str, str] = {}
    for requirement in requires("starshift") or ():
        package, _, marker = requirement.partition(";")
        extra = marker.partition("extra ==")[2].strip(" '\"")
        name = package.strip().split("[")[0].rstrip()
        for character in "<>=!~ ":
            name = name.split(character)[0]
        if extra and extra not in ("dev", "all") and name != "starshift":
            found[name] = _installed(name) or f"not installed: pip install 'starshift[{extra}]'"
    return found
