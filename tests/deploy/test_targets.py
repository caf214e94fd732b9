# SPDX-License-Identifier: Apache-2.0
"""Every target on one tiny network: what its file answers, carries and refuses."""

from __future__ import annotations

import gc
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

import starshift
from starshift.data import load_image
from starshift.deploy import Exported, Metadata, export_checked, get_target, load_exported, target_of, targets
from starshift.deploy._metadata import KEY
from starshift.errors import StarshiftError
from starshift.infer import evaluate, predict
from starshift.models import create_model, load_model, save_model
from starshift.preprocessing import Preprocessing
from tests.conftest import CLASSES
from tests.tolerance import assert_close

NAMES = [name for name in targets() if name != "onnx"]  # which has tests of its own
ANSWERING = [name for name in NAMES if get_target(name).why_not_here() is None]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: two star blocks for 32 pixels, batch norms with statistics of their own."""
    torch.manual_seed(0)
    args = {"depths": (1, 1), "base_dim": 8}
    model = create_model("starnet_s050_32px", num_classes=3, **args)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    folder = tmp_path_factory.mktemp("tiny") / "model"
    preprocessing = Preprocessing((32, 32), crop_pct=0.9)
    save_model(model, folder, name="starnet_s050_32px", model_args=args, classes=CLASSES, preprocessing=preprocessing)
    return folder


@pytest.fixture(scope="module")
def exported(tiny: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """``exported(name)``: the tiny network in that format, made once."""
    made: dict[str, Exported] = {}
    folder = tmp_path_factory.mktemp("exported")

    def make(name: str) -> Exported:
        if name not in made:
            made[name] = export_checked(tiny, name, folder, data=labelled)
        return made[name]

    return make


@pytest.fixture(scope="module")
def images(tiny: Path, labelled: Path) -> Tensor:
    preprocessing = load_model(tiny).preprocessing
    return torch.stack([load_image(p, preprocessing) for p in sorted(labelled.glob("*/?.jpg"))[:9]])


def test_there_is_a_file_a_target_and_every_one_works_in_this_environment() -> None:
    assert {"onnx", "openvino", "coreml", "executorch", "litert", "torch", "aotinductor"} <= set(targets())
    assert {name: target.missing() for name, target in targets().items()} == dict.fromkeys(targets())
    assert all(target.name == name for name, target in targets().items())
    assert len({target.suffix for target in targets().values()}) == len(targets())


@pytest.mark.parametrize("name", NAMES)
def test_the_file_answers_like_the_network_for_any_batch(name: str, exported, tiny: Path, images: Tensor) -> None:
    done = exported(name)
    assert done.path.name == f"model{get_target(name).suffix}" or done.path.name.endswith(get_target(name).suffix)
    assert [p for p in done.path.parent.iterdir() if p.name.startswith(".")] == []
    predictor = load_exported(done.path)
    if name not in ANSWERING:
        assert done.relative_error is None
        with pytest.raises(StarshiftError, match="on Apple's systems alone"):
            predictor.logits(images)
        return
    assert done.relative_error is not None and done.relative_error <= 1e-5
    model = load_model(tiny).model.eval()
    many = torch.cat([images] * 8)
    for n in (1, 2, 5, 9, 70):
        before = many[:n].clone()
        with torch.inference_mode():
            assert_close(f"batch {n}", predictor.logits(many[:n]), model(many[:n]))
        assert torch.equal(many[:n], before)


@pytest.mark.parametrize("name", ANSWERING)
def test_an_answer_is_not_overwritten_by_the_next(name: str, exported, images: Tensor) -> None:
    predictor = load_exported(exported(name).path)
    first = predictor.logits(images[:2])
    kept = first.clone()
    predictor.logits(images[2:4] * 3)
    predictor.logits(images[4:9] * 3)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("name", NAMES)
def test_metadata_travels_with_the_file(name: str, exported) -> None:
    facts = load_exported(exported(name).path).metadata  # type: ignore[attr-defined]
    assert facts.classes == tuple(CLASSES) and facts.preprocessing == Preprocessing((32, 32), crop_pct=0.9)
    assert facts.model == "starnet_s050_32px" and facts.license and facts.precision == "fp32"
    assert facts.versions["starshift"] == starshift.__version__ and facts.versions["torch"] in torch.__version__


@pytest.mark.parametrize("name", NAMES)
def test_nothing_tells_where_the_sources_lie(name: str, exported) -> None:
    here = str(Path(starshift.__file__).parent).encode()
    path = exported(name).path
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        contents = [file.read_bytes()]
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                contents += [archive.read(n) for n in archive.namelist()]
        assert not any(here in content for content in contents)


@pytest.mark.parametrize("name", ANSWERING)
def test_eval_and_predict_take_the_file_in_place_of_a_run(name: str, exported, tiny: Path, labelled: Path) -> None:
    path = exported(name).path
    ours, file = evaluate(tiny, labelled), evaluate(path, labelled)
    assert file.confusion == ours.confusion and file.n == 15
    pairs = zip(predict(tiny, labelled / "cat"), predict(str(path), labelled / "cat"), strict=True)
    assert all(a.labels == b.labels for a, b in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_other_files_are_explained(name: str, exported, tmp_path: Path, images: Tensor) -> None:
    path = exported(name).path
    other = tmp_path / f"other{get_target(name).suffix}"
    if path.is_file():
        other.write_bytes(path.read_bytes()[:100])
    else:
        other.mkdir()
    with pytest.raises(StarshiftError, match=r"other\S* (is not|cannot)"):
        load_exported(other)
    with pytest.raises(StarshiftError, match=r"takes float32 images of shape \(N, 3, 32, 32\), not float32 \(2, 3, 8"):
        load_exported(path).logits(images[:2, :, :8, :8])


def test_suffixes_that_end_alike_are_told_apart() -> None:
    assert target_of(Path("a.aoti.pt2")) is get_target("aotinductor")
    assert target_of(Path("a.pt2")) is get_target("torch")


def _facts() -> Metadata:
    return Metadata("tiny", tuple("abc"), Preprocessing((32, 32)))


def test_openvino_computes_in_float32_unless_told_otherwise(exported, tiny: Path, labelled: Path, tmp_path) -> None:
    full = load_exported(exported("openvino").path)
    hint = "INFERENCE_PRECISION_HINT"
    assert full.compiled.get_property(hint).to_string() == "f32"  # type: ignore[attr-defined]
    done = export_checked(tiny, "openvino", tmp_path, data=labelled, precision="bf16")
    assert done.path.name == "model-bf16.openvino", "beside the float32 one"
    half = load_exported(done.path)
    assert half.metadata.precision == done.precision == "bf16"  # type: ignore[attr-defined]
    assert half.compiled.get_property(hint).to_string() == "bf16"  # type: ignore[attr-defined]


def test_nobody_is_told_of_an_openvino_export(
    tiny: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its telemetry forks this process, which has threads, to send what it is given."""
    sender = pytest.importorskip("openvino_telemetry.utils.sender")
    told: list[object] = []
    monkeypatch.setattr(sender.TelemetrySender, "send", lambda self, backend, message: told.append(message))
    assert export_checked(tiny, "openvino", tmp_path, data=labelled).path.is_dir()
    assert not told


def test_openvino_weights_can_be_halved(exported, tiny: Path, labelled: Path, tmp_path: Path) -> None:
    done = export_checked(tiny, "openvino", tmp_path, data=labelled, precision="fp16")
    weights = [p / "model.bin" for p in (done.path, exported("openvino").path)]
    assert weights[0].stat().st_size < 0.6 * weights[1].stat().st_size


def test_executorch_runs_on_as_many_threads_as_pytorch(exported) -> None:
    runtime = pytest.importorskip("executorch.extension.pybindings.portable_lib")
    path, before = exported("executorch").path, torch.get_num_threads()
    gc.collect()  # predictors of other tests
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            first = load_exported(path)
            assert runtime._threadpool_get_thread_count() == threads
            torch.set_num_threads(3)
            second = load_exported(path)  # the first holds its threads
            assert runtime._threadpool_get_thread_count() == threads
            x = torch.rand(2, 3, 32, 32)
            assert torch.equal(first.logits(x), second.logits(x))
            del first, second
            gc.collect()
    finally:
        torch.set_num_threads(before)


def test_a_package_compiled_for_another_batch_is_found_out(exported, tmp_path: Path) -> None:
    """AOTInductor's code checks no shapes: compiled for one image it answers one row for five, without an error."""
    from torch._inductor import aoti_compile_and_package

    path = tmp_path / "static.aoti.pt2"
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 3)).eval()
    program = torch.export.export(network, (torch.zeros(1, 3, 32, 32),))
    facts = {"aot_inductor.metadata": _facts().to_strings()}
    aoti_compile_and_package(program, package_path=str(path), inductor_configs=facts)
    predictor = load_exported(path)
    assert predictor.logits(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    with pytest.raises(StarshiftError, match="made for another batch"):
        predictor.logits(torch.zeros(5, 3, 32, 32))


def test_a_file_without_our_metadata_is_explained(tmp_path: Path) -> None:
    program = torch.export.export(torch.nn.Flatten(), (torch.zeros(2, 3, 4),))
    torch.export.save(program, tmp_path / "foreign.pt2")
    with pytest.raises(StarshiftError, match="no labels and no preprocessing"):
        load_exported(tmp_path / "foreign.pt2")
    assert KEY in _facts().to_strings()


def test_litert_explains_a_torch_that_is_too_new(monkeypatch: pytest.MonkeyPatch) -> None:
    target = get_target("litert")
    monkeypatch.setattr(torch, "__version__", "2.16.0+cpu")
    assert target.missing(to_load=True) is None
    message = target.missing()
    assert message is not None and "torch below 2.15" in message and "2.16.0" in message
    assert "pip install 'starshift[litert]'" in message


@pytest.mark.parametrize("name", [n for n in NAMES if get_target(n).extra])
def test_a_missing_package_is_answered_with_the_install_command(name: str, exported, tiny, monkeypatch) -> None:
    import importlib.util

    path, gone = exported(name).path, get_target(name).runtime[0]
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == gone else real(n, *a))
    for act in (lambda: export_checked(tiny, name), lambda: load_exported(path)):
        with pytest.raises(StarshiftError, match=rf"needs {gone}.*: pip install 'starshift\[{name}\]'"):
            act()


def test_a_precision_that_a_format_lacks_is_explained(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(StarshiftError, match="openvino is written in fp32 or fp16 or bf16, not 'fp8'"):
        export_checked(tiny, "openvino", tmp_path, precision="fp8")


def test_a_folder_takes_the_place_of_the_one_before(tiny: Path, labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.openvino"
    for _ in range(2):
        done = export_checked(tiny, "openvino", out, data=labelled)
        assert done.path == out and sorted(p.name for p in out.iterdir()) == ["model.bin", "model.xml"]
        (out / "notes.txt").write_text("of yesterday")
    assert [p.name for p in tmp_path.iterdir()] == ["m.openvino"]


def test_a_file_does_not_take_the_place_of_a_folder(tiny: Path, labelled: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos.onnx" / "a.jpg"
    photos.parent.mkdir()
    photos.touch()
    with pytest.raises(StarshiftError, match=r"photos\.onnx is a folder, and what was exported is a file"):
        export_checked(tiny, "onnx", photos.parent, data=labelled)
    assert photos.exists() and [p.name for p in tmp_path.iterdir()] == ["photos.onnx"]
