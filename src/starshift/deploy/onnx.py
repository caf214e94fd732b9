# SPDX-License-Identifier: Apache-2.0
"""ONNX: one file of standard operators, for ONNX Runtime and whatever else reads the format."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from starshift.deploy._file import FilePredictor
from starshift.deploy._int8 import int8_weights, is_of, of_every, weights_of
from starshift.deploy._metadata import Metadata
from starshift.deploy._quiet import quiet
from starshift.deploy._target import Target
from starshift.errors import StarshiftError

OPSET = 18  # what the exporter writes without converting; every runtime of the last years reads it
INPUT, OUTPUT = "images", "logits"
VIEWS = ("Cast", "Identity", "Reshape", "Slice", "Split", "Transpose")  # what may lie between a weight and its product


class Onnx(Target):
    """PyTorch's exporter (torch.export based), opset 18, any batch size, weights inside the file."""

    name = "onnx"
    suffix = ".onnx"
    extra = "onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")
    runtime = ("onnxruntime",)
    int8_packages = ()
    wide_kernel = 7

    def export(self, model: nn.Module, example: Tensor, metadata: Metadata, path: Path) -> None:
        _save(_network(model, example), metadata, path)

    def export_int8(self, model: nn.Module, images: list[Tensor], metadata: Metadata, path: Path) -> None:
        """QDQ: unsigned activations (four times as fast as signed ones on x86), weights by channel.

        The runtime multiplies the star in int8 too, and ReLU6 is no operator of its own: what comes before it is
        quantised from 0 to 6. Wide depthwise convolutions and the sums around them compute in float, on int8 weights.
        """
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        network = _network(model, images[0][:2])
        kept = _kept(network.graph, metadata.kept_float, weights_of(model, metadata.kept_float))
        wide = _wide_depthwise(network.graph, self.wide_kernel or math.inf)
        excluded = [node.name for node in (*kept, *wide, *_sums_around(network.graph, wide))]
        rounded = {node.input[1] for node in wide}.difference(*(node.input for node in kept))
        with quiet("root"), tempfile.TemporaryDirectory() as folder:
            quantize_static(
                network,
                f"{folder}/int8.onnx",
                _Reader(images),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                nodes_to_exclude=excluded,
            )
            network = onnx.load(f"{folder}/int8.onnx")
        _round_weights(network.graph, rounded)
        _shorten_names(network.graph)
        _save(network, metadata, path)

    def load(self, path: Path, *, device: str = "cpu") -> OnnxPredictor:
        return OnnxPredictor(path, device=device)


def _network(model: nn.Module, example: Tensor) -> Any:
    """The network as an ``onnx.ModelProto``."""
    with quiet("torch.onnx", "onnxscript", "onnx_ir"):
        program = torch.onnx.export(
            model,
            (example,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            external_data=False,
            verbose=False,
        )
    assert program is not None  # None only with dynamo=False
    network = program.model_proto  # made anew at every access
    _strip(network)
    return network


def _kept(graph: Any, layers: Sequence[str], weights: list[Any]) -> list[Any]:
    """The nodes of these layers, with those between a weight and its product.

    The exporter renames, transposes and cuts weights, which leaves their values, and folds batch norms into them, which
    leaves their names.

    Raises:
        StarshiftError: a layer is not there.
    """
    from onnx import numpy_helper

    values = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    givers = {output: node for node in graph.node for output in node.output}
    paths: list[tuple[str, list[Any]]] = []  # an initializer, and the nodes from a product back to it
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            name, path = node.input[1], [node]
            while name in givers and givers[name].op_type in VIEWS:
                path.append(givers[name])
                name = givers[name].input[0]
            if name in values:
                paths.append((name, path))
    return of_every(
        layers,
        (
            [n for name, path in paths if name == f"{layer}.weight" or is_of(weight, values[name]) for n in path]
            for layer, weight in zip(layers, weights, strict=True)
        ),
    )


def _wide_depthwise(graph: Any, kernel: float) -> list[Any]:
    """Depthwise convolutions with a kernel this large."""
    shapes = {value.name: tuple(value.dims) for value in graph.initializer}
    convs = [node for node in graph.node if node.op_type == "Conv" and len(shapes.get(node.input[1], ())) == 4]
    groups = {node.name: next((a.i for a in node.attribute if a.name == "group"), 1) for node in convs}
    return [
        node
        for node in convs
        if groups[node.name] == shapes[node.input[1]][0] > 1 and max(shapes[node.input[1]][2:]) >= kernel
    ]


def _sums_around(graph: Any, convs: list[Any]) -> list[Any]:
    """Sums of what these convolutions give, or that one of them reads."""
    given, read = {node.output[0] for node in convs}, {node.input[0] for node in convs}
    return [
        node
        for node in graph.node
        if node.op_type == "Add" and (given.intersection(node.input) or node.output[0] in read)
    ]


def _round_weights(graph: Any, names: set[str]) -> None:
    """Keep weights as int8 times a scale, which the runtime multiplies once, as it loads the file."""
    import onnx
    from onnx import numpy_helper

    for value in [value for value in graph.initializer if value.name in names]:
        weights, scale = int8_weights(numpy_helper.to_array(value))
        name = value.name
        graph.initializer.remove(value)
        graph.initializer.append(numpy_helper.from_array(weights, f"{name}_int8"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        cast = onnx.helper.make_node("Cast", [f"{name}_int8"], [f"{name}_cast"], to=onnx.TensorProto.FLOAT)
        graph.node.insert(0, onnx.helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [name]))
        graph.node.insert(0, cast)


def _save(network: Any, metadata: Metadata, path: Path) -> None:
    import onnx

    onnx.helper.set_model_props(network, metadata.to_strings() | {"opset": str(OPSET)})
    onnx.checker.check_model(network, full_check=True)
    path.write_bytes(network.SerializeToString())


class _Reader:
    """Batches for ONNX Runtime's calibration."""

    def __init__(self, images: list[Tensor]) -> None:
        self._batches = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch.numpy()}


class OnnxPredictor(FilePredictor):
    """An ONNX file in ONNX Runtime. On the CPU it uses as many threads as torch does."""

    def __init__(self, path: Path, *, device: str = "cpu") -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        asked = _providers(torch.device(device))
        try:
            self._session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=asked)
        except OSError:
            raise
        except Exception as error:  # ONNX Runtime raises several classes of its own, which derive from Exception alone
            raise StarshiftError(f"{path} is not a readable ONNX file: {str(error).strip()}") from error
        if self._session.get_providers()[0] != asked[0][0]:  # it falls back to the CPU without an error
            raise StarshiftError(
                f"ONNX Runtime cannot use {device} here: install the CUDA and cuDNN that this onnxruntime-gpu was built"
                " for, or use --device cpu"
            )
        super().__init__(path, Metadata.from_strings(self._session.get_modelmeta().custom_metadata_map, path=path))

    def run(self, batch: Tensor) -> Tensor:
        (result,) = self._session.run([OUTPUT], {INPUT: batch.numpy()})
        return torch.from_numpy(result)


def _providers(device: torch.device) -> list[tuple[str, dict[str, int]]]:
    """What runs a file on a device, and behind it what runs the operators that it lacks."""
    import onnxruntime

    cpu: tuple[str, dict[str, int]] = ("CPUExecutionProvider", {})
    if device.type == "cpu":
        return [cpu]
    if device.type != "cuda":
        raise StarshiftError(f"ONNX files are run on the CPU or with CUDA, not on {device}: use --device cpu")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise StarshiftError("this onnxruntime has no CUDA: pip install onnxruntime-gpu, or use --device cpu")
    return [("CUDAExecutionProvider", {"device_id": device.index or 0}), cpu]


def _shorten_names(graph: Any) -> None:
    """Number what lies between input and output: int8 has so many tensors that their names are a tenth of a file."""
    del graph.value_info[:]  # shapes between, which every runtime finds itself
    short = {INPUT: INPUT, OUTPUT: OUTPUT, "": ""}
    for value in graph.initializer:
        value.name = short.setdefault(value.name, f"t{len(short)}")
    for number, node in enumerate(graph.node):
        node.name = f"n{number}"
        for names in (node.input, node.output):
            names[:] = [short.setdefault(name, f"t{len(short)}") for name in names]


def _strip(proto: Any) -> None:
    """Remove the exporter's notes (stack traces with this machine's paths among them), a third of a small file."""
    graph = proto.graph
    for collection in (graph.node, graph.input, graph.output, graph.initializer, graph.value_info):
        for item in collection:
            item.ClearField("metadata_props")
            item.ClearField("doc_string")
    graph.ClearField("metadata_props")


TARGET = Onnx()
