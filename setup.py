# SPDX-License-Identifier: Apache-2.0
"""Builds the compiled kernels where a C++ compiler is found; without one the install succeeds and plain torch answers.

One shared library for each instruction set, all from the same sources (``ops/*/cpu.cpp``, and what measures the
machine's ceiling); the one that fits the machine is chosen when it is loaded (``starshift/ops/_native.py``). They know
neither Python nor torch.
"""

import os
import platform
import re
import sys
from copy import copy
from glob import glob

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = [*sorted(glob("src/starshift/ops/*/cpu.cpp")), "src/starshift/bench/ceiling.cpp"]
SHARED = "src/starshift/ops/native"
HEADERS = sorted(glob("src/starshift/ops/*/*.h"))
X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]
INSTRUCTION_SETS: dict[str, list[str]] = {"generic": []}
if X86:
    INSTRUCTION_SETS |= {"avx2": ["-mavx2", "-mfma"], "avx512": AVX512, "avx512_bf16": [*AVX512, "-mavx512bf16"]}
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]  # Apple's clang has none: kernels then run on one thread
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wno-psabi", *OPENMP]


def included(source: str) -> set[str]:
    """The headers that a source includes, and those that they do."""
    found: set[str] = set()
    waiting = [source]
    while waiting:
        path = waiting.pop()
        with open(path, encoding="utf-8") as file:
            names = re.findall(r'^#include "(.+)"', file.read(), re.MULTILINE)
        for name in names:
            beside = os.path.normpath(os.path.join(os.path.dirname(path), name))
            header = beside if os.path.exists(beside) else os.path.join(SHARED, name)
            if header not in found:
                found.add(header)
                waiting.append(header)
    return found


def is_fresh(built: str, source: str) -> bool:
    """Newer than the source, the headers it includes and this file with its flags."""
    made_of = [source, *included(source), __file__]
    return os.path.exists(built) and os.path.getmtime(built) > max(map(os.path.getmtime, made_of))


class BuildKernels(build_ext):
    def finalize_options(self) -> None:
        """As many libraries at a time as there are cores."""
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extension(self, ext: Extension) -> None:
        """Each library has its object files in a folder of their own, since they have the same names; those newer than
        their sources are taken as they are."""
        own, ext = copy(self), copy(ext)
        own.build_temp = os.path.join(self.build_temp, ext.name)
        objects = dict(zip(ext.sources, self.compiler.object_filenames(ext.sources, 0, own.build_temp), strict=True))
        fresh = [source for source in ext.sources if not self.force and is_fresh(objects[source], source)]
        ext.depends = [*ext.depends, *ext.sources, __file__]
        ext.sources = [source for source in ext.sources if source not in fresh]
        ext.extra_objects = [objects[source] for source in fresh]
        super(BuildKernels, own).build_extension(ext)

    def get_ext_filename(self, fullname: str) -> str:
        """No Python version in the name: the libraries have a C interface and serve every version."""
        return f"{fullname.replace('.', '/')}.so"


class Wheel(bdist_wheel):
    def run(self) -> None:
        """Where no kernel could be built, make the wheel of a package that has none."""
        self.run_command("build")
        if not any(os.path.exists(path) for path in self.get_finalized_command("build_ext").get_outputs()):
            self.distribution.ext_modules = []
            self.root_is_pure = True
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Any Python 3; the platform only where kernels were built."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            f"starshift._kernels_{name}",
            SOURCES,
            include_dirs=[SHARED],
            depends=HEADERS,
            extra_compile_args=[*FLAGS, *flags],
            extra_link_args=OPENMP,
            language="c++",
            optional=True,
        )
        for name, flags in INSTRUCTION_SETS.items()
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
)
