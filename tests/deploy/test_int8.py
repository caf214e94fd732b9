# SPDX-License-Identifier: Apache-2.0
"""int8: every target that has it on a network trained on scikit-learn's digits, and the search for layers to leave in
float."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from starshift.bench.int8 import bench_int8
from starshift.deploy import Exported, Metadata, TrainedOn, _int8, export_checked, get_target, load_exported, targets
from starshift.deploy._sensitivity import by_sensitivity
from starshift.deploy._source import noise_images, open_source
from starshift.errors import StarshiftError
from starshift.infer import evaluate
from starshift.layers import fold_batchnorm
from starshift.models import create_model
from starshift.preprocessing import Preprocessing
from starshift.training import train

ABLE = [name for name, target in targets().items() if target.int8_packages is not None]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run: a small StarNet, trained until it tells digits apart."""
    out = tmp_path_factory.mktemp("digits") / "run"
    args = {"depths": [1, 1], "base_dim": 8}
    train(data="digits", model="starnet_s050_32px", model_args=args, epochs=4, hflip=0.0, out=out, seed=1)
    return out


@pytest.fixture(scope="module")
def quantised(digits: Path, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    made: dict[str, Exported] = {}
    folder = tmp_path_factory.mktemp("int8")

    def make(name: str) -> Exported:
        if name not in made:
            made[name] = export_checked(digits, name, folder, quantize="int8", max_drop=1.5)
            assert made[name].path.name == f"model-int8{get_target(name).suffix}"
        return made[name]

    return make


def test_four_runtimes_have_int8() -> None:
    assert set(ABLE) == {"onnx", "openvino", "litert", "executorch"}


@pytest.mark.parametrize("name", ABLE)
def test_int8_keeps_the_accuracy(name: str, quantised, digits: Path) -> None:
    done = quantised(name)
    assert done.precision == "int8" and done.int8.n > 300 and done.int8.top1_float > 50
    assert done.int8.top1_float - done.int8.top1 <= 1.5
    measured = evaluate(done.path, "digits")
    assert measured.held_out and abs(measured.top1 - done.int8.top1) < 100 * 2.5 / measured.n
    assert load_exported(done.path).metadata.precision == "int8"  # type: ignore[attr-defined]
    assert 1e-5 < done.relative_error < 0.5  # it is quantised, and not broken


def _int8_weights(path: Path) -> int:
    import onnx

    return sum(t.ByteSize() for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.INT8)


def test_layers_named_stay_in_float(digits: Path, quantised, tmp_path: Path) -> None:
    """The most sensitive layers, kept by the export itself; what they hold is in float in the file."""
    network = open_source(digits)
    model = fold_batchnorm(network.model)
    order = by_sensitivity(model, noise_images(network.preprocessing, 8))
    assert set(order) == {n.removesuffix(".weight") for n, p in model.named_parameters() if p.ndim in (2, 4)}
    images = _int8.open_images(network, None)
    facts = load_exported(quantised("onnx").path).metadata  # type: ignore[attr-defined]
    target, sizes = get_target("onnx"), []
    for kept in ((), ("stages.1.1.f1.conv", "head")):
        path = tmp_path / f"{len(kept)}.onnx"
        target.export_int8(model, images.calibration, _int8.replace(facts, kept_float=kept), path)
        sizes.append(_int8_weights(path))
        assert load_exported(path).metadata.kept_float == kept  # type: ignore[attr-defined]
    weights = dict(model.named_parameters())
    kept_values = weights["stages.1.1.f1.conv.weight"].numel() + weights["head.weight"].numel()
    assert kept_values <= sizes[0] - sizes[1] < 1.5 * kept_values + 200


def _in_float(path: Path, weight: Tensor) -> bool:
    """Whether an ONNX file holds this weight in float, in any order, with nothing quantised on its way to a product."""
    import numpy as np
    import onnx

    graph = onnx.load(path).graph
    givers = {output: node for node in graph.node for output in node.output}
    sources = []
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            name = node.input[1]
            while name in givers and givers[name].op_type in ("Split", "Transpose"):
                name = givers[name].input[0]
            sources.append(name)
    values = [onnx.numpy_helper.to_array(value) for value in graph.initializer if value.name in sources]
    return any(np.array_equal(np.sort(v, None), np.sort(weight.detach().numpy(), None)) for v in values)


@pytest.mark.parametrize(
    ("name", "args", "layers"),
    [
        ("demonet_d12_w32", {}, ("stem", "blocks.0.dwconv", "blocks.3.f", "blocks.3.g")),
        (
            "vit_tiny_patch16_224",
            {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2},
            ("blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.1.mlp.fc2", "head"),
        ),
    ],
)
def test_layers_are_found_however_their_weights_are_written(name: str, args: dict, layers: tuple, tmp_path) -> None:
    """Linear maps of tokens become products with a transposed weight, those of DemoNet with the parts of one."""
    torch.manual_seed(0)
    model = fold_batchnorm(create_model(name, num_classes=3, **args).eval())
    images = [torch.randn(4, 3, 32, 32)]
    facts = Metadata(name, ("a", "b", "c"), Preprocessing((32, 32)), kept_float=layers)
    path = tmp_path / "m.onnx"
    get_target("onnx").export_int8(model, images, facts, path)
    inner = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert {n for n, module in inner.items() if _in_float(path, module.weight)} == set(layers)


def test_openvinos_layers_are_found_beside_products_of_activations_and_where_a_weight_is_cut() -> None:
    import openvino

    from starshift.deploy import openvino as target
    from starshift.deploy._program import export_program
    from starshift.deploy._quiet import unreported

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(3, 8)

        def forward(self, x: Tensor) -> Tensor:
            (w1, w2), (b1, b2) = self.q.weight.chunk(2), self.q.bias.chunk(2)
            x = x.flatten(2).transpose(1, 2)
            q, k = nn.functional.linear(x, w1, b1), nn.functional.linear(x, w2, b2)
            return (q @ k.transpose(1, 2)).mean(2)

    model = Attention().eval()
    with unreported():
        network = openvino.convert_model(export_program(model, torch.randn(2, 3, 4, 4)))
    assert len(target._operations(network, ["q"], _int8.weights_of(model, ["q"]))) == 2
    with pytest.raises(StarshiftError, match="layer r cannot stay in float"):
        target._operations(network, ["q", "r"], [*_int8.weights_of(model, ["q"]), torch.ones(3, 8).numpy()])


def test_litert_names_a_layer_that_it_does_not_find(tmp_path: Path) -> None:
    from starshift.deploy import litert as target

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)).eval()
    flatbuffer = target.convert(model, torch.randn(1, 3, 8, 8), tmp_path / "m.tflite")
    weights = _int8.weights_of(model, ["0", "3"])
    assert len(target._operations(flatbuffer, ["0", "3"], weights)) == 2
    with pytest.raises(StarshiftError, match="layer r cannot stay in float"):
        target._operations(flatbuffer, ["r"], [torch.ones(3, 8).numpy()])


def test_a_layer_that_is_not_found_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    facts = Metadata("m", ("a", "b", "c"), Preprocessing((2, 2)), kept_float=("elsewhere",))
    monkeypatch.setattr("starshift.deploy.onnx.weights_of", lambda model, layers: [torch.zeros(3, 12).numpy()])
    with pytest.raises(StarshiftError, match="layer elsewhere cannot stay in float"):
        get_target("onnx").export_int8(model, [torch.randn(2, 3, 2, 2)], facts, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_wide_depthwise_convolutions_and_their_sums_compute_in_float_on_int8_weights(quantised) -> None:  # type: ignore[no-untyped-def]
    import onnx

    graph = onnx.load(quantised("onnx").path).graph
    givers = {name: node.op_type for node in graph.node for name in node.output}
    assert not [
        t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 4 and t.dims[3] == 7
    ]
    convs = [n for n in graph.node if n.op_type == "Conv" and any(a.name == "group" and a.i > 1 for a in n.attribute)]
    sums = [n for n in graph.node if n.op_type == "Add"]
    assert len(convs) == 4 and {givers[node.input[1]] for node in convs} == {"Mul"}, "int8 weights times a scale"
    assert len(sums) == 2 and all("Conv" in {givers[i] for i in node.input} for node in sums), "nothing in between"


def test_openvinos_trunk_and_products_are_in_float(quantised) -> None:  # type: ignore[no-untyped-def]
    import openvino

    network = openvino.Core().read_model(quantised("openvino").path / "model.xml")
    convs = [op for op in network.get_ordered_ops() if op.get_type_name() == "GroupConvolution"]
    assert len(convs) == 4
    for conv in convs:
        weights, scale = (value.get_node() for value in conv.input_value(1).get_node().input_values())
        assert weights.input_value(0).get_element_type() == openvino.Type.i8 and scale.get_type_name() == "Constant"
    quantised_inputs = [
        op.get_type_name()
        for op in network.get_ordered_ops()
        if op.get_type_name() in ("Multiply", "GroupConvolution")
        for value in op.input_values()
        if value.get_node().get_type_name() == "FakeQuantize"
    ]
    assert quantised_inputs == []


def test_a_layer_that_breaks_is_found_first() -> None:
    """One channel a thousand times the others leaves the rest of a tensor no steps: its layer must come first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(128, 4))
    with torch.no_grad():
        model[1].weight[0] *= 1000
        model[2].weight[:, 0] = 0
    assert by_sensitivity(model.eval(), torch.randn(4, 3, 4, 4))[0] in ("1", "2")


class Network:
    """Stands in for a target: loses a point for every sensitive layer that is not left in float."""

    def __init__(self, sensitive: set[str]) -> None:
        self.sensitive, self.tried = sensitive, list[int]()

    def export_int8(self, model: nn.Module, images: list[Tensor], metadata, path: Path) -> None:  # type: ignore[no-untyped-def]
        self.tried.append(len(metadata.kept_float))
        path.write_text(str(len(self.sensitive - set(metadata.kept_float))))

    def load(self, path: Path) -> Network:
        self.lost = int(path.read_text())
        return self

    def logits(self, batch: Tensor) -> Tensor:
        return batch


@pytest.mark.parametrize(
    ("needed", "max_drop", "kept"),
    [
        ((), 0.5, ()),
        ((0,), 0.5, (0,)),
        (range(5), 0.5, range(5)),
        (range(6), 2.0, range(4)),
        (range(8), 0, range(8)),
        ((5,), 0.5, (5,)),
        ((7,), 0.5, (7,)),
        ((1, 6), 0.5, (1, 6)),
        ((0, 3, 4), 1.0, (0, 3)),
    ],
)
def test_as_few_layers_as_will_do_stay_in_float(needed, max_drop: float, kept, monkeypatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    names = [f"layer{i}" for i in range(8)]
    target = Network({names[i] for i in needed})
    monkeypatch.setattr(_int8, "by_sensitivity", lambda model, images: names)
    scores = lambda logits, images, p: (90.0 - (target.lost if logits == target.logits else 0), 100)  # noqa: E731
    monkeypatch.setattr(_int8, "top1", scores)
    images = _int8.Images([torch.zeros(1)], None, "x")  # type: ignore[arg-type]
    facts = _int8.Metadata("m", ("a",), None)  # type: ignore[arg-type]
    said: list[str] = []
    done = _int8.write_int8(target, nn.Linear(1, 1), images, facts, tmp_path / "f", max_drop, said.append)  # type: ignore[arg-type]
    assert done.kept_float == tuple(names[i] for i in kept) and len(said) == len(target.tried) <= 22
    assert int((tmp_path / "f").read_text()) == len(needed) - len(kept)


def test_when_no_layer_can_be_int8_it_is_said(monkeypatch, tmp_path: Path) -> None:
    target = Network({"elsewhere"})
    monkeypatch.setattr(_int8, "by_sensitivity", lambda model, images: ["a", "b", "c"])
    monkeypatch.setattr(
        _int8, "top1", lambda logits, images, p: (90.0 - (target.lost if logits == target.logits else 0), 100)
    )
    images = _int8.Images([torch.zeros(1)], None, "photos")  # type: ignore[arg-type]
    facts = _int8.Metadata("m", ("a",), None)  # type: ignore[arg-type]
    with pytest.raises(StarshiftError, match=r"loses 1\.00 points .* photos with every layer in float, above 0\.5"):
        _int8.write_int8(target, nn.Linear(1, 1), images, facts, tmp_path / "f", 0.5, print)  # type: ignore[arg-type]
    assert target.tried == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int8"}, "int8 needs images to calibrate with: .* --data FOLDER"),
        ({"quantize": "int4"}, "the one kind of quantisation is int8"),
        ({"quantize": "int8", "precision": "fp32"}, "without --precision"),
        ({"quantize": "int8", "format": "coreml"}, "coreml has no int8 here; .*onnx"),
    ],
)
def test_mistakes_are_explained(options: dict, message: str, small_model: Path, tmp_path: Path) -> None:
    with pytest.raises(StarshiftError, match=message):
        export_checked(small_model, **{"format": "onnx", "out": tmp_path, **options})
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_classes_have_changed_does_not_calibrate(small_model: Path, labelled: Path) -> None:
    network = open_source(small_model)
    same = replace(network, trained_on=TrainedOn(str(labelled)))
    assert _int8.open_images(same, None).calibration
    with pytest.raises(StarshiftError, match="no longer those that the run was trained on: give labelled images"):
        _int8.open_images(replace(same, classes=("bird", *network.classes[1:])), None)


def test_bench_names_what_is_missing_before_it_exports(small_model: Path, labelled: Path, monkeypatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nncf" else there(name))
    monkeypatch.setattr("starshift.bench.int8.export_checked", lambda *_, **__: pytest.fail("exported"))
    for formats, message in (
        (["openvino"], r"openvino needs nncf: pip install 'starshift\[openvino\]'"),
        (["coreml"], r"coreml has no int8 here; .*onnx"),
        (["onx"], "Did you mean 'onnx'"),
    ):
        with pytest.raises(StarshiftError, match=message):
            next(bench_int8(small_model, labelled, formats))


def test_given_images_calibrate_and_others_of_them_measure(small_model: Path, labelled: Path) -> None:
    found = _int8.open_images(open_source(small_model), labelled)
    assert sum(map(len, found.calibration)) in (7, 8) and len(found.held_out) == 8  # of 16, one of which is no image
    assert create_model("starnet_s050").num_classes == 1000
