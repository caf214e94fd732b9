# SPDX-License-Identifier: Apache-2.0
"""The compiled kernels alone, without Python and torch: each NAME.cpp here drives ``ops/NAME/cpu.cpp``.

Random shapes against plain loops, for every instruction set that this machine can run or emulate, and with memory and
undefined behaviour checked.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.tolerance import RELATIVE

HERE = Path(__file__).parent
OPS = HERE.parents[1] / "src" / "starshift" / "ops"
DRIVERS = sorted(path.stem for path in HERE.glob("*.cpp"))
MADE_OF = {"star_block": ("depthwise", "star", "shift"), "csc": ("conv",)}
"""The kernels that a kernel calls."""

SANITIZED = ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
AVX2 = ["-mavx2", "-mfma"] if platform.machine().lower() in ("x86_64", "amd64") else []
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"] if AVX2 else []
STREAMED = "-DSTARSHIFT_LARGE=0"  # results go past the caches where they can, not the large ones alone
# Compiler and flags, the program that runs the result, and the number of random cases.
BUILDS = {
    "generic": ("g++", SANITIZED, [], 150),
    "avx2": ("g++", [*SANITIZED, *AVX2, STREAMED], [], 150),
    "avx512": ("g++", [*SANITIZED, *AVX512, STREAMED], [], 150),
    "avx512_bf16": ("g++", [*SANITIZED, *AVX512, "-mavx512bf16"], [], 150),
    "sixteen-wide": ("g++", ["-O1", "-DSTARSHIFT_VL=16"], [], 500),
    "pairs": ("g++", [*SANITIZED, "-DSTARSHIFT_VL=16", "-DSTARSHIFT_PAIRS"], [], 150),
    "neon": ("aarch64-linux-gnu-g++", ["-O1", "-static"], ["qemu-aarch64"], 500),
}


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("driver", DRIVERS)
def test_random_cases(driver: str, build: str, tmp_path: Path) -> None:
    compiler, flags, runner, cases = BUILDS[build]
    missing = [tool for tool in (compiler, *runner) if not shutil.which(tool)]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not found")
    here = torch.backends.cpu.get_cpu_capability()
    if here not in {"avx2": ("AVX2", "AVX512"), "avx512": ("AVX512",), "avx512_bf16": ("AVX512",)}.get(build, (here,)):
        pytest.skip(f"this machine has no {build.upper()}")
    if build == "avx512_bf16" and not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this machine has no AVX-512 of bfloat16")
    tolerances = [
        f"-DTOLERANCE_FLOAT32={RELATIVE[torch.float32]}",
        f"-DTOLERANCE_BFLOAT16={RELATIVE[torch.bfloat16]}",
    ]
    kernels = [str(OPS / name / "cpu.cpp") for name in (driver, *MADE_OF.get(driver, ()))]
    program = str(tmp_path / driver)
    command = [compiler, "-std=c++17", "-w", "-Wno-psabi", *flags, *tolerances, f"-I{OPS / 'native'}"]
    subprocess.run([*command, str(HERE / f"{driver}.cpp"), *kernels, "-o", program], check=True)
    result = subprocess.run([*runner, program, str(cases)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
