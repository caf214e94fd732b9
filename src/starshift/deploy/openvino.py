# SPDX-License-Identifier: Apache-2.0
"""OpenVINO: a folder with ``model.xml`` and ``model.bin``, for Intel's processors and graphics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from starshift.deploy._file import FilePredictor
from starshift.deploy._int8 import int8_weights, is_of, of_every, weights_of
from starshift.deploy._metadata import Metadata
from starshift.deploy._program import export_program
from starshift.deploy._quiet import quiet, silent, unreported
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
    precisions = MappingProxyType({"fp32": 1e-5, "fp16": 5e-3, "bf16": 1e-1})
    int8_packages = ("nncf",)
    wide_kernel = 7

    def export(self, model: nn.Module, example: Tensor, metadata: Metadata, path: Path) -> None:
        with quiet(), unreported():
            import openvino

            save(openvino.convert_model(export_program(model, example)), example, metadata, path)

    def export_int8(self, model: nn.Module, images: list[Tensor], metadata: Metadata, path: Path) -> None:
        """NNCF: weights by channel, activations symmetric where they are not negative, biases corrected.

        The star's product, wide depthwise convolutions and the sums around them compute in float, on int8 weights.
        """
        with silent("nncf"), unreported():
            import nncf
            import openvino

            network = openvino.convert_model(export_program(model, images[0][:2]))
            network.reshape([-1, *images[0].shape[1:]])
            kept = _operations(network, metadata.kept_float, weights_of(model, metadata.kept_float))
            wide = _wide_depthwise(network, self.wide_kernel or math.inf)
            elementwise = _elementwise(network, wide)
            quantised = nncf.quantize(
                network,
                nncf.Dataset(images, lambda batch: batch.numpy()),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(images),
                ignored_scope=nncf.IgnoredScope(names=list({*kept, *wide, *elementwise})),
            )
            _round_weights(quantised, set(wide) - set(kept))
            save(quantised, images[0], metadata, path)

    def load(self, path: Path, *, device: str = "cpu") -> OpenVinoPredictor:
        return OpenVinoPredictor(path, device=device)


def _operations(network: Any, layers: Sequence[str], weights: list[Any]) -> list[str]:
    """Names of the operations that take the weights of these layers.

    Raises:
        StarshiftError: a layer has none.
    """
    sources = []
    for operation in network.get_ordered_ops():
        if "Convolution" in operation.get_type_name() or operation.get_type_name() == "MatMul":
            source = operation.input_value(1).get_node()
            while source.get_input_size():
                source = source.input_value(0).get_node()
            if source.get_type_name() == "Constant":
                sources.append((operation.get_friendly_name(), source.data))
    return of_every(layers, ([name for name, data in sources if is_of(w, data)] for w in weights))


def _wide_depthwise(network: Any, kernel: float) -> list[str]:
    """Names of depthwise convolutions with a kernel this large; their weights are (C, 1, 1, k, k)."""
    return [
        operation.get_friendly_name()
        for operation in network.get_ordered_ops()
        if operation.get_type_name() == "GroupConvolution"
        and tuple(operation.input_value(1).shape)[1:3] == (1, 1)
        and max(tuple(operation.input_value(1).shape)[3:]) >= kernel
    ]


def _elementwise(network: Any, convs: list[str]) -> list[str]:
    """Names of products of two activations, and of sums that take from or give to one of these convolutions."""
    names = []
    for operation in network.get_ordered_ops():
        kind, takes = operation.get_type_name(), [_giver(value) for value in operation.input_values()]
        if kind not in ("Add", "Multiply") or any(giver.get_type_name() == "Constant" for giver in takes):
            continue
        readers = [reader.get_node() for output in operation.outputs() for reader in output.get_target_inputs()]
        if kind == "Multiply" or {node.get_friendly_name() for node in (*takes, *readers)}.intersection(convs):
            names.append(operation.get_friendly_name())
    return names


def _giver(value: Any) -> Any:
    """The operation that a value comes from; a bias added on the way, or a conversion, is part of it."""
    node = value.get_node()
    while node.get_type_name() in ("Add", "Convert"):
        inputs = [source.get_node() for source in node.input_values()]
        constant = [source.get_type_name() in ("Constant", "Convert") for source in inputs]
        if node.get_type_name() == "Convert":
            node = inputs[0]
        elif any(constant):
            node = inputs[constant.index(False)]
        else:
            break
    return node


def _round_weights(network: Any, names: set[str]) -> None:
    """Keep the weights of these operations as int8 times a scale, which the runtime multiplies as it loads the file."""
    import numpy as np
    from openvino import opset13 as ops

    for operation in network.get_ordered_ops():
        if operation.get_friendly_name() in names:
            weights, scale = int8_weights(operation.input_value(1).get_node().data)
            whole = ops.convert(ops.constant(weights), np.float32)
            operation.input(1).replace_source_output(ops.multiply(whole, ops.constant(scale)).output(0))


def save(network: Any, example: Tensor, metadata: Metadata, path: Path) -> None:
    """Write an ``openvino.Model`` with its metadata as a folder."""
    with unreported():
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
        with unreported():  # the import tells, too
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
