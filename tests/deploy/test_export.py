# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import starshift
from starshift.data import load_image
from starshift.deploy import (
    Metadata,
    TrainedOn,
    export,
    export_checked,
    get_target,
    load_exported,
    relative_error,
    targets,
)
from starshift.errors import StarshiftError
from starshift.models import load_model
from starshift.preprocessing import Preprocessing
from tests.tolerance import assert_close


@pytest.fixture
def run(small_model: Path, tmp_path: Path) -> Path:
    """A folder with the small model in it, as a run has."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model").symlink_to(small_model)
    return folder


def test_the_file_answers_like_the_network_for_any_batch(
    small_model: Path, onnx_file: Path, make_photos, tmp_path: Path
) -> None:
    predictor = load_exported(onnx_file)
    loaded = load_model(small_model)
    images = torch.stack([load_image(p, loaded.preprocessing) for p in make_photos(tmp_path, 9)])
    for n in (1, 2, 5, 9):
        with torch.inference_mode():
            assert_close(f"batch {n}", predictor.logits(images[:n]), loaded.model.eval()(images[:n]))


def test_labels_and_preprocessing_travel_in_the_file(onnx_file: Path) -> None:
    import onnx

    predictor = load_exported(onnx_file)
    assert predictor.classes == ("cat", "dog", "eel")
    assert predictor.preprocessing == Preprocessing((32, 32), crop_pct=0.9)
    facts = {p.key: p.value for p in onnx.load(onnx_file).metadata_props}
    assert json.loads(facts["labels"]) == ["cat", "dog", "eel"]
    assert json.loads(facts["versions"])["starshift"] == starshift.__version__
    assert json.loads(facts["preprocessing"])["input_size"] == [3, 32, 32]
    assert facts["model"] == "starnet_s050" and facts["license"]


def _operators(path: Path) -> set[tuple[str, str]]:
    import onnx

    model = onnx.load(path)
    assert not model.functions
    assert [o.domain for o in model.opset_import] == [""] and model.opset_import[0].version >= 18
    return {(node.domain, node.op_type) for node in model.graph.node}


def test_one_file_of_standard_operators_without_notes_of_this_machine(onnx_file: Path) -> None:
    operators = _operators(onnx_file)
    assert {domain for domain, _ in operators} == {""}
    assert "BatchNormalization" not in {op for _, op in operators}  # all folded, StarNet's last one too
    assert os.listdir(onnx_file.parent) == [onnx_file.name]
    assert str(Path(starshift.__file__).parent).encode() not in onnx_file.read_bytes()


@pytest.mark.parametrize("name", ["shiftresnet20", "shiftnet_c", "demonet_d12_w32"])
def test_every_family_is_exported_in_standard_operators(name: str, tmp_path: Path) -> None:
    size = 32 if name.startswith("shiftresnet") else 64
    done = export_checked(name, out=tmp_path, img_size=size)
    assert done.relative_error <= get_target("onnx").precisions["fp32"]
    assert done.path == tmp_path / f"{name}.onnx" and done.size == done.path.stat().st_size
    assert {domain for domain, _ in _operators(done.path)} == {""}
    assert load_exported(done.path).preprocessing.size == (size, size)


class Plain:
    """Stands in for the exporter, which takes seconds: writes some bytes, or fails as told."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def __call__(self, model: nn.Module, example: Tensor, metadata: Metadata, path: Path) -> None:
        path.write_bytes(b"half")
        if self.error:
            raise self.error


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (
            RuntimeError("no rule for aten::frobnicate\nlong story"),
            "cannot be written as onnx: no rule for aten::frobnicate$",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left"),
        (None, "not a readable ONNX file"),
    ],
)
def test_a_failed_export_leaves_no_file(run: Path, monkeypatch: pytest.MonkeyPatch, failure, message: str) -> None:
    monkeypatch.setattr(get_target("onnx"), "export", Plain(failure))
    (run / "model.onnx").write_bytes(b"of yesterday")
    with pytest.raises((StarshiftError, OSError), match=message):
        export(run)
    assert (run / "model.onnx").read_bytes() == b"of yesterday"
    assert sorted(os.listdir(run)) == ["model", "model.onnx"]


@pytest.mark.parametrize("error", [2e-5, float("inf")])
def test_a_file_that_answers_otherwise_is_not_put_in_place(
    run: Path, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    monkeypatch.setattr(get_target("onnx"), "export", Plain())
    monkeypatch.setattr(get_target("onnx"), "check", lambda model, path, images: error)
    with pytest.raises(StarshiftError, match="answers differently from PyTorch"):
        export(run)
    assert os.listdir(run) == ["model"]


def test_the_check_sees_a_network_that_differs(small_model: Path, onnx_file: Path) -> None:
    loaded = load_model(small_model)
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    target = get_target("onnx")
    assert target.check(loaded.model.eval(), onnx_file, images) <= target.precisions["fp32"]
    with torch.no_grad():
        next(p for p in reversed(list(loaded.model.parameters())) if p.ndim == 2).mul_(1.001)
    assert target.check(loaded.model, onnx_file, images) > target.precisions["fp32"]


def _checked_on(monkeypatch: pytest.MonkeyPatch, *args: object, **options: object) -> tuple[str, Tensor]:
    """What the file was checked on, and with which images, without running the exporter."""
    seen: list[Tensor] = []
    monkeypatch.setattr(get_target("onnx"), "export", Plain())
    monkeypatch.setattr(get_target("onnx"), "check", lambda model, path, images: seen.append(images) or 0.0)
    return export_checked(*args, **options).checked_on, seen[0]  # type: ignore[arg-type]


def test_it_is_checked_on_the_images_given(run: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, images = _checked_on(monkeypatch, run, data=labelled)
    assert words == f"5 images of {labelled}" and images.shape == (5, 3, 32, 32)
    expected = load_image(labelled / "cat" / "0.jpg", Preprocessing((32, 32), crop_pct=0.9))
    assert_close("first image", images[0], expected)


def test_it_is_checked_on_the_runs_own_validation_images(
    run: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "config.yaml").write_text(f"data: {labelled}\nseed: 1\nval_fraction: 0.5\n")
    words, images = _checked_on(monkeypatch, run)
    assert words == f"5 images of the validation split of {labelled}" and len(images) == 5
    (run / "config.yaml").write_text("data: /moved/away\n")
    words, images = _checked_on(monkeypatch, run)
    assert words.startswith("seeded noise (the training data is no longer there") and len(images) == 5


def test_without_data_it_is_checked_on_noise_that_is_always_the_same(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (words, first), (_, second) = (_checked_on(monkeypatch, run) for _ in range(2))
    assert words == "seeded noise" and torch.equal(first, second)
    assert first.std(dim=0).min() > 0


def test_the_name_of_an_architecture_is_exported_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = starshift.create_model("starnet_s050")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    kept: list[nn.Module] = []
    monkeypatch.setattr(get_target("onnx"), "export", Plain())
    monkeypatch.setattr(get_target("onnx"), "check", lambda model, path, images: kept.append(model) or 0.0)
    done = export_checked("starnet_s050", out=tmp_path, checkpoint=tmp_path / "weights.pth", img_size=64)
    assert done.path == tmp_path / "starnet_s050.onnx"
    for a, b in zip(kept[0].state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def _exported_as(monkeypatch: pytest.MonkeyPatch, *args: object, **options: object) -> tuple[Metadata, list[str]]:
    """The metadata that a file gets, and what is said meanwhile, without running the exporter."""
    facts: list[Metadata] = []
    said: list[str] = []

    def write(model: nn.Module, example: Tensor, metadata: Metadata, path: Path) -> None:
        facts.append(metadata)
        path.write_bytes(b"")

    monkeypatch.setattr(get_target("onnx"), "export", write)
    monkeypatch.setattr(get_target("onnx"), "check", lambda model, path, images: 0.0)
    export(*args, **options, on_step=said.append)  # type: ignore[arg-type]
    return facts[0], said


def test_random_weights_are_told_of_in_words_and_in_the_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, said = _exported_as(monkeypatch, "starnet_s050", out=tmp_path, img_size=64)
    assert not facts.trained and facts.to_strings()["trained"] == "false"
    assert len(said) == 1 and said[0].startswith("warning: starnet_s050 has random weights")
    torch.save(starshift.create_model("starnet_s050").state_dict(), tmp_path / "w.pth")
    given = _exported_as(monkeypatch, "starnet_s050", out=tmp_path, checkpoint=tmp_path / "w.pth", img_size=64)
    for facts, said in (given, _exported_as(monkeypatch, run)):
        assert facts.trained and said == []


def test_published_weights_are_exported_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, bool]] = []
    real = starshift.create_model

    def create(name: str, pretrained: bool = False, checkpoint_path: Path | None = None) -> nn.Module:
        made.append((name, pretrained))
        return real(name)

    monkeypatch.setattr("starshift.models.create_model", create)
    facts, said = _exported_as(monkeypatch, "starnet_s050", out=tmp_path, pretrained=True, img_size=64)
    assert made == [("starnet_s050", True)] and facts.trained and said == []


def test_published_weights_that_there_are_not_or_not_wanted_are_explained(run: Path, tmp_path: Path) -> None:
    for source, options, message in (
        ("shiftresnet20", {}, "no pretrained weights for shiftresnet20"),
        ("shiftresnet20", {"checkpoint": "w.pth"}, "give one of --checkpoint and --pretrained, not both"),
        (run, {}, "has its own weights: --pretrained goes with the name of an architecture"),
    ):
        with pytest.raises(StarshiftError, match=message):
            export(source, out=tmp_path, pretrained=True, **options)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("starnet_s1", {"format": "onyx"}, r"no export format 'onyx'. Did you mean 'onnx'\? There are: .*onnx"),
        ("starnet_s11", {}, r"no folder and no model 'starnet_s11'. Did you mean 'starnet_s1'"),
        ("runs/none", {}, "no folder and no model 'runs/none'"),
        ("starnet_s050", {"out": "no/such/folder/m.onnx"}, "no folder no/such/folder"),
        ("starnet_s050", {"out": "model.tflite"}, r"ends in \.onnx"),
    ],
)
def test_mistakes_are_explained_before_anything_is_written(
    source: str, options: dict, message: str, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StarshiftError, match=message):
        export(source, **options)
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_beside_a_run_is_refused(run: Path) -> None:
    with pytest.raises(StarshiftError, match="has its own weights"):
        export(run, checkpoint="weights.pth")


def test_a_missing_package_is_answered_with_the_install_command(run: Path, onnx_file: Path, monkeypatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxruntime" else real(name, *a))
    assert not targets()["onnx"].available()
    for act in (lambda: export(run), lambda: load_exported(onnx_file)):
        with pytest.raises(StarshiftError, match=r"onnx needs onnxruntime: pip install 'starshift\[onnx\]'"):
            act()


def test_a_file_that_is_not_ours_is_explained(onnx_file: Path, tmp_path: Path) -> None:
    import onnx

    broken = tmp_path / "broken.onnx"
    broken.write_bytes(onnx_file.read_bytes()[:1000])
    with pytest.raises(StarshiftError, match="not a readable ONNX file"):
        load_exported(broken)
    model = onnx.load(onnx_file)
    del model.metadata_props[:]
    foreign = tmp_path / "foreign.onnx"
    onnx.save(model, foreign)
    with pytest.raises(StarshiftError, match="no labels and no preprocessing"):
        load_exported(foreign)
    with pytest.raises(StarshiftError, match=r"end in .*\.onnx"):
        load_exported(tmp_path / "model.xyz")


@pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("cuda:1", 1)])
@pytest.mark.parametrize("works", [True, False])
def test_onnx_runtime_gets_the_device_asked_for_or_none(
    device: str, index: int, works: bool, onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    asked: list[object] = []
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, content: bytes, options: object, providers: list) -> None:
            asked.extend(providers)
            super().__init__(content, options, providers=[cpu])

        def get_providers(self) -> list[str]:
            return [cuda, cpu] if works else [cpu]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cuda, cpu])
    if works:
        load_exported(onnx_file, device=device)
    else:
        with pytest.raises(StarshiftError, match=f"ONNX Runtime cannot use {device} here: .*--device cpu"):
            load_exported(onnx_file, device=device)
    assert asked == [(cuda, {"device_id": index}), (cpu, {})]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("mps", "^ONNX files are run on the CPU or with CUDA, not on mps: use --device cpu"),
        ("cuda", "^this onnxruntime has no CUDA: pip install onnxruntime-gpu"),
    ],
)
def test_a_device_that_onnx_runtime_lacks_is_explained(
    device: str, message: str, onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(StarshiftError, match=message):
        load_exported(onnx_file, device=device)


def test_metadata_survives_its_strings() -> None:
    facts = Metadata(
        model="starnet_s1",
        classes=("naïve", '"quoted"', "a\nb"),
        preprocessing=Preprocessing((48, 64), (0.5,), (0.25,), "bilinear", 0.9),
        model_args={"num_classes": 3},
        trained_on=TrainedOn("photos", {"seed": 1}),
        license="cc-by-4.0",
        versions={"torch": "2.15"},
        commit="abc",
        trained=False,
    )
    assert Metadata.from_strings(facts.to_strings(), path=Path("x")) == facts
    before = {key: value for key, value in facts.to_strings().items() if key != "trained"}
    assert Metadata.from_strings(before, path=Path("x")).trained
    with pytest.raises(StarshiftError, match="metadata cannot be read"):
        Metadata.from_strings(facts.to_strings() | {"labels": "["}, path=Path("x"))


def test_relative_error() -> None:
    a = torch.tensor([[1.0, -4.0]])
    assert relative_error(a, a) == 0
    assert relative_error(a + torch.tensor([[0.0, 0.4]]), a) == pytest.approx(0.1)
    assert relative_error(a * float("nan"), a) == float("inf")
    assert relative_error(a.repeat(2, 1), a) == float("inf")
