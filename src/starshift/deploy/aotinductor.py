# SPDX-License-Identifier: Apache-2.0
"""AOTInductor: the network compiled by torch.compile into a library for this kind of processor (``.aoti.pt2``)."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from starshift.deploy._file import FilePredictor
from starshift.deploy._metadata import Metadata
from starshift.deploy._program import export_program
from starshift.deploy._quiet import silent
from starshift.deploy._target import Target
from starshift.errors import StarshiftError


class AotInductor(Target):
    """A compiled package, any batch size. It is machine code, and can do whatever a program can."""

    name = "aotinductor"
    suffix = ".aoti.pt2"
    extra = ""
    packages = runtime = ()

    def missing(self, *, to_load: bool = False, int8: bool = False) -> str | None:
        if to_load or any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")):
            return None
        return "aotinductor needs a C++ compiler: install g++ or clang++ (Debian: apt-get install g++)"

    def export(self, model: nn.Module, example: Tensor, metadata: Metadata, path: Path) -> None:
        from torch._inductor import aoti_compile_and_package

        options = {"aot_inductor.metadata": metadata.to_strings()}
        with silent("torch"):
            program = export_program(model, example)
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)

    def load(self, path: Path, *, device: str = "cpu") -> AotInductorPredictor:
        return AotInductorPredictor(path, device=device)


class AotInductorPredictor(FilePredictor):
    """The compiled package. Its code checks no shapes: what goes in and comes out is compared with the metadata."""

    def __init__(self, path: Path, *, device: str = "cpu") -> None:
        from torch._inductor import aoti_load_package

        if device != "cpu":
            raise StarshiftError(f"{path} was compiled for the CPU, not for {device}: use --device cpu")
        if not zipfile.is_zipfile(path):
            raise StarshiftError(f"{path} is not an AOTInductor package")
        try:
            with silent("torch"):
                self._module = aoti_load_package(str(path))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise StarshiftError(f"{path} cannot be used on this machine: {reason}; export it here") from error
        super().__init__(path, Metadata.from_strings(self._module.loader.get_metadata(), path=path))

    @torch.inference_mode()
    def run(self, batch: Tensor) -> Tensor:
        return self._module(batch)


TARGET = AotInductor()
