# SPDX-License-Identifier: Apache-2.0
"""LiteRT (TensorFlow Lite): a ``.tflite`` file for Android, microcontrollers' bigger siblings and the web."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from starshift.deploy._file import FilePredictor
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

    def export(self, model: nn.Module, example: Tensor, metadata: Metadata, path: Path) -> None:
        path.write_bytes(with_metadata(convert(model, example, path), metadata))

    def load(self, path: Path, *, device: str = "cpu") -> LiteRtPredictor:
        return LiteRtPredictor(path, device=device)


def convert(model: nn.Module, example: Tensor, path: Path) -> bytes:
    """The network as a flatbuffer without metadata; ``path`` is free to write to."""
    with silent("litert_torch", "jax", "root"):
        import litert_torch

        litert_torch.convert(model, (example[:1],)).export(str(path))
    return path.read_bytes()


def with_metadata(flatbuffer: bytes, metadata: Metadata) -> bytes:
    """Add an entry to the file's own table of metadata."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    network = schema.ModelT.InitFromPackedBuf(flatbuffer, 0)
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
