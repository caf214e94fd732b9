# SPDX-License-Identifier: Apache-2.0
"""Core ML: an ``.mlpackage`` for Apple's devices. It can be written anywhere and run on Apple's systems alone."""

from __future__ import annotations

import sys
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from starshift.deploy._file import FilePredictor
from starshift.deploy._metadata import Metadata
from starshift.deploy._program import export_program
from starshift.deploy._quiet import silent
from starshift.deploy._target import Target
from starshift.errors import StarshiftError

INPUT, OUTPUT = "images", "logits"
LARGEST_BATCH = 1024


class CoreMl(Target):
    """An ML program, batches of 1 to 1024; ``fp16`` is what the Neural Engine computes in."""

    name = "coreml"
    suffix = ".mlpackage"
    extra = "coreml"
    packages = runtime = ("coremltools",)
    precisions = MappingProxyType({"fp32": 1e-5, "fp16": 1e-2})

    def why_not_here(self) -> str | None:
        if sys.platform == "darwin":
            return None
        return "Core ML answers on Apple's systems alone: open the file on a Mac, or export another format to use here"

    def export(self, model: nn.Module, example: Tensor, metadata: Metadata, path: Path) -> None:
        with silent("coremltools"):
            import coremltools as ct

            program = export_program(model, example).run_decompositions({})
            precision = ct.precision.FLOAT16 if metadata.precision == "fp16" else ct.precision.FLOAT32
            batch = ct.RangeDim(1, LARGEST_BATCH, default=1)
            package = ct.convert(
                program,
                inputs=[ct.TensorType(name=INPUT, shape=(batch, *example.shape[1:]))],
                outputs=[ct.TensorType(name=OUTPUT)],
                convert_to="mlprogram",
                compute_precision=precision,
                minimum_deployment_target=ct.target.iOS16,
                skip_model_load=True,
            )
            package.user_defined_metadata.update(metadata.to_strings())
            package.short_description = f"{metadata.model}, {len(metadata.classes)} classes"
            package.license = metadata.license
            package.save(str(path))

    def load(self, path: Path, *, device: str = "cpu") -> CoreMlPredictor:
        return CoreMlPredictor(path, device=device)


class CoreMlPredictor(FilePredictor):
    """In Core ML, where there is one; elsewhere it only says what the file is."""

    def __init__(self, path: Path, *, device: str = "cpu") -> None:
        with silent("coremltools"):
            import coremltools as ct

        here = TARGET.why_not_here() is None
        units = ct.ComputeUnit.CPU_ONLY if device == "cpu" else ct.ComputeUnit.ALL
        try:
            self.package = ct.models.MLModel(str(path), compute_units=units, skip_model_load=not here)
        except Exception as error:  # a missing file, protobuf's and Core ML's own classes
            raise StarshiftError(f"{path} is not a readable Core ML package: {error}") from error
        super().__init__(path, Metadata.from_strings(self.package.user_defined_metadata, path=path))

    def run(self, batch: Tensor) -> Tensor:
        reason = TARGET.why_not_here()
        if reason:
            raise StarshiftError(reason)
        return torch.from_numpy(self.package.predict({INPUT: batch.numpy()})[OUTPUT]).float()


TARGET = CoreMl()
