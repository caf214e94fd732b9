# SPDX-License-Identifier: Apache-2.0
"""LiteRT (TensorFlow Lite): a ``.tflite`` file for Android, microcontrollers' bigger siblings and the web."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from starshift.deploy._file import FilePredictor
from starshift.deploy._int8 import is_of, of_every, weights_of
from starshift.deploy._metadata import Metadata
from starshift.deploy._quiet import silent
from starshift.deploy._target import Target
from starshift.errors import StarshiftError

ENTRY = "starshift"  # name of the flatbuffer's metadata entry; its buffer is JSON


class LiteRt(Target):
    """A file for one image at a time, as the delegates for GPUs and neural processors want it."""

    name = "litert"
    suffix = ".tflite"
    extra = "litert"
    packages = ("litert_torch", "ai_edge_litert")
    runtime = ("ai_edge_litert",)
    torch_below = (2, 15)
    int8_packages = ("ai_edge_quantizer",)

    def export(self, model: nn.Module, example: Tensor, metadata: Metadata, path: Path) -> None:
        path.write_bytes(with_metadata(convert(model, example, path), metadata))

    def export_int8(self, model: nn.Module, images: list[Tensor], metadata: Metadata, path: Path) -> None:
        """The AI Edge quantiser: signed activations, weights by channel; input and output stay float."""
        flatbuffer = convert(model, images[0], path)
        with silent("root", "absl"):
            from ai_edge_quantizer import algorithm_manager, quantizer, recipe

            making = quantizer.Quantizer(bytearray(flatbuffer), recipe.static_wi8_ai8())
            layers = metadata.kept_float
            names = _operations(flatbuffer, layers, weights_of(model, layers))
            kept = [(re.escape(name), "*") for name in names]
            for pattern, operation in ((".*", "INPUT"), (".*", "OUTPUT"), *kept):
                making.update_quantization_recipe(
                    pattern, operation, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE
                )
            (signature,) = _signatures(flatbuffer)
            samples = [{signature[1]: image.numpy()} for batch in images for image in batch.split(1)]
            ranges = making.calibrate({signature[0]: samples})
            quantised = making.quantize(ranges).quantized_model
        path.write_bytes(with_metadata(bytes(quantised), metadata))

    def load(self, path: Path, *, device: str = "cpu") -> LiteRtPredictor:
        return LiteRtPredictor(path, device=device)


def convert(model: nn.Module, example: Tensor, path: Path) -> bytes:
    """The network as a flatbuffer without metadata; ``path`` is free to write to."""
    with silent("litert_torch", "jax", "root"):
        import litert_torch

        litert_torch.convert(model, (example[:1],)).export(str(path))
    return path.read_bytes()


def _operations(flatbuffer: bytes, layers: Sequence[str], weights: list[Any]) -> list[str]:
    """Names of the outputs of the operations that take the weights of these layers (whose last axes LiteRT reorders).

    Raises:
        StarshiftError: a layer has none.
    """
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    network = schema.ModelT.InitFromPackedBuf(flatbuffer, 0)
    tensors, sources = network.subgraphs[0].tensors, []
    for operation in network.subgraphs[0].operators:
        for tensor in (tensors[index] for index in operation.inputs if index >= 0):
            data = network.buffers[tensor.buffer].data
            if data is not None and len(data) == 4 * np.prod(tensor.shape):
                values = np.frombuffer(bytes(data), np.float32).reshape(tensor.shape)
                sources.append((tensors[operation.outputs[0]].name.decode(), values))

    def reads(weight: Any, values: Any) -> bool:
        return is_of(weight, values) or np.array_equal(np.sort(values, None), np.sort(weight, None))

    return of_every(layers, ([name for name, values in sources if reads(w, values)] for w in weights))


def _signatures(flatbuffer: bytes) -> list[tuple[str, str]]:
    """(signature, its input's name) of every signature."""
    from ai_edge_litert import schema_py_generated as schema

    network = schema.ModelT.InitFromPackedBuf(flatbuffer, 0)
    return [(s.signatureKey.decode(), s.inputs[0].name.decode()) for s in network.signatureDefs]


def with_metadata(flatbuffer: bytes, metadata: Metadata) -> bytes:
    """Add an entry to the file's own table of metadata."""
    import flatbuffers
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    network = schema.ModelT.InitFromPackedBuf(flatbuffer, 0)
    for stored in network.buffers:
        if stored.offset > 1:  # it lies behind the flatbuffer, at a place that will move
            stored.data = np.frombuffer(flatbuffer, np.uint8, stored.size, stored.offset)
            stored.offset = stored.size = 0
    entry, buffer = schema.MetadataT(), schema.BufferT()
    buffer.data = list(json.dumps(metadata.to_strings()).encode())
    entry.name, entry.buffer = ENTRY, len(network.buffers)
    network.buffers.append(buffer)
    network.metadata = [*(network.metadata or []), entry]
    builder = flatbuffers.Builder(len(flatbuffer) + len(buffer.data))
    builder.Finish(network.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _metadata(flatbuffer: bytes) -> dict[str, str]:
    from ai_edge_litert import schema_py_generated as schema

    network = schema.Model.GetRootAs(flatbuffer, 0)
    for i in range(network.MetadataLength()):
        entry = network.Metadata(i)
        if entry.Name() == ENTRY.encode():
            return json.loads(bytes(network.Buffers(entry.Buffer()).DataAsNumpy()))
    return {}


class LiteRtPredictor(FilePredictor):
    """In LiteRT's interpreter with XNNPACK, image by image, with as many threads as torch has."""

    def __init__(self, path: Path, *, device: str = "cpu") -> None:
        if device != "cpu":
            raise StarshiftError(f"LiteRT files are run on the CPU here, not on {device}: use --device cpu")
        content = path.read_bytes()
        if content[4:8] != b"TFL3":
            raise StarshiftError(f"{path} is not a LiteRT file")
        try:
            with silent():
                from ai_edge_litert.interpreter import Interpreter

                self._interpreter: Any = Interpreter(model_content=content, num_threads=torch.get_num_threads())
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise StarshiftError(f"{path} is not a readable LiteRT file: {error}") from error
        super().__init__(path, Metadata.from_strings(_metadata(content), path=path))
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]

    def run(self, batch: Tensor) -> Tensor:
        return torch.cat([self._one(image) for image in batch.split(1)])

    def _one(self, image: Tensor) -> Tensor:
        self._interpreter.set_tensor(self._input, image.numpy())
        self._interpreter.invoke()
        return torch.from_numpy(self._interpreter.get_tensor(self._output))


TARGET = LiteRt()
