# SPDX-License-Identifier: Apache-2.0
"""What an install holds: compiled kernels where there is a compiler, and a package that works where there is none.

Built from a copy of the sources with one small C++ file, since compiling all of them takes minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux which libraries are mapped")
compiler = pytest.mark.skipif(shutil.which("g++") is None and shutil.which("c++") is None, reason="no C++ compiler")


def build_wheel(folder: Path, **environment: str) -> Path:
    """A wheel of the package with the Python files of all and the C++ of the machine's ceiling alone."""
    copy = folder / "source"
    unwanted = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info", "cpu.cpp")
    shutil.copytree(ROOT / "src", copy / "src", ignore=unwanted)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", ".", "-q", "--no-deps"]
    subprocess.run(
        [*pip, "--no-build-isolation", "-w", str(folder)], cwd=copy, env={**os.environ, **environment}, check=True
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def libraries(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")}


@compiler
def test_a_wheel_with_kernels_is_for_every_python_3_on_this_platform(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path)
    assert "-py3-none-" in wheel.name and not wheel.name.endswith("-any.whl")
    assert {"starshift/_kernels_generic.so"} <= libraries(wheel)
    page = {f"starshift/bench/web/{name}" for name in ("index.html", "style.css", "page.js", "engine.js")}
    assert page <= set(zipfile.ZipFile(wheel).namelist())
    assert "Root-Is-Purelib: false" in metadata(wheel)


def test_without_a_compiler_the_package_is_plain_and_says_why(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, CC="/bin/false", CXX="/bin/false")
    assert wheel.name.endswith("-py3-none-any.whl") and not libraries(wheel)
    assert "Root-Is-Purelib: true" in metadata(wheel)
    code = (
        "import starshift, torch\n"
        "from starshift.ops import depthwise_conv2d\n"
        "print(starshift.__file__)\n"
        "print(depthwise_conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3), padding=1).sum().item())\n"
        "from starshift.cli.main import app\n"
        "app(['info'])\n"
    )
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    where, answer, *info = result.stdout.splitlines()
    assert Path(where).is_relative_to(tmp_path) and answer == "49.0"
    said = info[info.index("compiled kernels") + 1 : info.index("kernels")]
    assert len(said) == 1 and "not built: install again where a C++ compiler" in said[0]
    assert any(line.split()[:2] == ["depthwise_conv2d", "cpu:"] and "reference (no compiled" in line for line in info)


def metadata(wheel: Path) -> str:
    files = zipfile.ZipFile(wheel)
    return files.read(next(n for n in files.namelist() if n.endswith(".dist-info/WHEEL"))).decode()


@linux
def test_kernels_share_the_openmp_runtime_of_torch() -> None:
    code = (
        "import torch, starshift.ops\n"
        "from starshift.bench.ceiling import ceiling\n"
        "torch.randn(500, 500) @ torch.randn(500, 500)\n"
        "ceiling(2)\n"
        "maps = {line.split()[-1] for line in open('/proc/self/maps') if 'gomp' in line or 'libomp' in line}\n"
        "print(*maps, sep='\\n')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(result.stdout.split()) == 1, result.stdout
