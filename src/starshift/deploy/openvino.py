# SPDX-License-Identifier: Apache-2.0
"""OpenVINO: a folder with ``model.xml`` and ``model.bin``, for Intel's processors and graphics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from starshift.deploy._file import FilePredictor
from starshift.deploy._metadata import Metadata
from starshift.deploy._program import export_program
from starshift.deploy._quiet import quiet
from starshift.deploy._target import Target
from starshift.errors import StarshiftError

XML = "model.xml"
HINTS = {"fp32": "f32", "fp16": "f32", "bf16": "bf16", "int8": "f32"}
"""What the runtime computes in. Its own default on a processor with AMX or AVX-512 BF16 is bfloat16, unasked."""


class OpenVino(Target):
    """OpenVINO's intermediate representation, any batch size. ``fp16`` halves the weights alone."""

    name = "openvino"
    suffix = ".openvino"
    extra = "openvino"
    packages = runtime = ("openvino",)
    precisions = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 1e-1}

    def export(self, model: nn.Module, example: Tensor, metadata: Metadata, path: Path) -> None:
        import openvino

        with quiet():
            save(openvino.convert_model(export_program(model, example)), example, metadata, path)

    def load(self, path: Path, *, device: str = "cpu") -> OpenVinoPredictor:
        return OpenVinoPredictor(path, device=device)


def save(network: Any, example: Tensor, metadata: Metadata, path: Path) -> None:
    """Write an ``openvino.Model`` with its metadata as a folder."""
    import openvino

    network.reshape([-1, *example.shape[1:]])
    network.inputs[0].set_names({"images"})
    network.outputs[0].set_names({"logits"})
    for key, value in metadata.to_strings().items():
        network.set_rt_info(value, ["starshift_metadata", key])
    path.mkdir()
    openvino.save_model(network, path / XML, compress_to_fp16=metadata.precision == "fp16")


class OpenVinoPredictor(FilePredictor):
    """In OpenVINO's runtime, in the precision that the file was exported in, with as many threads as torch has."""

    def __init__(self, path: Path, *, device: str = "cpu") -> None:
        import openvino

        if device != "cpu":
            raise StarshiftError(f"OpenVINO files are run on the CPU here, not on {device}: use --device cpu")
        core = openvino.Core()
        try:
            network = core.read_model(path / XML)
        except RuntimeError as error:
            raise StarshiftError(f"{path} is not a readable OpenVINO folder: {_first_line(error)}") from error
        info = network.get_rt_info(["starshift_metadata"]).value if network.has_rt_info("starshift_metadata") else {}
        metadata = Metadata.from_strings({key: _text(value) for key, value in info.items()}, path=path)
        super().__init__(path, metadata)
        options = {
            "INFERENCE_PRECISION_HINT": HINTS.get(metadata.precision, "f32"),
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self.compiled = core.compile_model(network, "CPU", options)

    def run(self, batch: Tensor) -> Tensor:
        # share_inputs=True (the default) lets the runtime write into a caller's array; outputs are copied all the same.
        (result,) = self.compiled(batch.numpy(), share_inputs=False, share_outputs=False).values()
        return torch.from_numpy(result)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else value.astype(str)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


TARGET = OpenVino()
