# SPDX-License-Identifier: Apache-2.0
"""ExecuTorch: a ``.pte`` file for phones and embedded processors, its operators run by XNNPACK."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import torch
from torch import Tensor, nn

from starshift.deploy._file import FilePredictor
from starshift.deploy._int8 import BATCH
from starshift.deploy._metadata import Metadata
from starshift.deploy._program import export_program
from starshift.deploy._quiet import silent
from starshift.deploy._sensitivity import layer_of
from starshift.deploy._target import Target
from starshift.errors import StarshiftError

LARGEST_BATCH = 8  # memory is planned ahead for it; without a bound the runtime refuses batches above some of its own
METHOD = "starshift_metadata"  # a method of the program without arguments: its value is a string


class ExecuTorch(Target):
    """A program whose parts are delegated to XNNPACK, for batches of 1 to 8."""

    name = "executorch"
    suffix = ".pte"
    extra = "executorch"
    packages = ("executorch", "torchao")
    runtime = ("executorch",)
    int8_packages = ()

    def export(self, model: nn.Module, example: Tensor, metadata: Metadata, path: Path) -> None:
        with silent("executorch", "torch", "root"):
            save(export_program(model, example, largest_batch=LARGEST_BATCH), metadata, path)

    def export_int8(self, model: nn.Module, images: list[Tensor], metadata: Metadata, path: Path) -> None:
        """PT2E with XNNPACK's quantiser: signed activations, weights by channel."""
        with silent("executorch", "torch", "torchao", "root"), torch.no_grad():
            from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

            kept = set(metadata.kept_float)
            config = xnnpack_quantizer.get_symmetric_quantization_config(is_per_channel=True)
            quantizer = xnnpack_quantizer.XNNPACKQuantizer().set_global(config)
            quantizer.set_filter_function(lambda node: layer_of(node) not in kept)
            prepared = prepare_pt2e(
                export_program(model, images[0][:2], largest_batch=BATCH).module(check_guards=False), quantizer
            )
            for batch in images:
                prepared(batch)
            save(export_program(convert_pt2e(prepared), images[0][:2], largest_batch=LARGEST_BATCH), metadata, path)

    def load(self, path: Path, *, device: str = "cpu") -> ExecuTorchPredictor:
        return ExecuTorchPredictor(path, device=device)


def save(program: torch.export.ExportedProgram, metadata: Metadata, path: Path) -> None:
    """Lower a program to XNNPACK and write it."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    texts = {METHOD: json.dumps(metadata.to_strings())}
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], constant_methods=texts)
    path.write_bytes(edge.to_executorch().buffer)


class ExecuTorchPredictor(FilePredictor):
    """In ExecuTorch's runtime, at most eight images at a time."""

    def __init__(self, path: Path, *, device: str = "cpu") -> None:
        if device != "cpu":
            raise StarshiftError(f"ExecuTorch files are run on the CPU here, not on {device}: use --device cpu")
        content = path.read_bytes()
        if content[4:6] != b"ET":  # the runtime ends the process over some broken files
            raise StarshiftError(f"{path} is not an ExecuTorch file")
        try:
            with silent():
                from executorch.runtime import Runtime

                _set_threads()
                self._program = Runtime.get().load_program(content)
        except RuntimeError as error:
            raise StarshiftError(f"{path} is not a readable ExecuTorch file: {error}") from error
        texts: dict[str, str] = {}
        if METHOD in self._program.method_names:
            texts = json.loads(str(self._method(METHOD).execute([])[0]))
        super().__init__(path, Metadata.from_strings(texts, path=path))
        self._forward = self._method("forward")
        _open.add(self)

    def _method(self, name: str):  # type: ignore[no-untyped-def]  # the runtime's class has no public name
        with silent():
            method = self._program.load_method(name)
        if method is None:
            raise StarshiftError(f"this ExecuTorch program has no method {name}")
        return method

    def run(self, batch: Tensor) -> Tensor:
        # Copied: the answer lies in the runtime's own memory, which the next call writes anew.
        return torch.cat([self._forward.execute([part])[0].clone() for part in batch.split(LARGEST_BATCH)])


_open: weakref.WeakSet[ExecuTorchPredictor] = weakref.WeakSet()


def _set_threads() -> None:
    """As many threads as PyTorch has, where no program is open: one keeps hold of the threads it was loaded with."""
    from executorch.extension.pybindings import portable_lib

    threads = torch.get_num_threads()
    if not _open and portable_lib._threadpool_get_thread_count() != threads:
        portable_lib._unsafe_reset_threadpool(threads)


TARGET = ExecuTorch()
