# SPDX-License-Identifier: Apache-2.0
"""Pickled PyTorch files of strangers: their tensors come out, their code never runs."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from starshift.errors import StarshiftError
from starshift.models import create_model, load_weights
from starshift.models._unpickle import Inert, load_inert, module_state_dict
from starshift.models._weights import read_state_dict
from tests.models.helpers import randomise
from tests.models.python2 import Call, Global, Stream
from tests.models.reference_shiftresnet import ResNet
from tests.tolerance import assert_close


@pytest.fixture(scope="module")
def official() -> ResNet:
    torch.manual_seed(0)
    return randomise(ResNet(expansion=2))


@pytest.fixture(scope="module")
def t7(official: ResNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An official checkpoint: a whole module of classes that cannot be imported, saved on a GPU under Python 2."""
    path = tmp_path_factory.mktemp("t7") / "shiftresnet20_2.0.t7"
    Stream().write(path, {"net": official, "acc": 90.5, "epoch": 163})
    return path


@pytest.mark.parametrize("offsets", ["grouped", "interleaved"])
def test_official_shiftresnet_gives_its_logits(official: ResNet, t7: Path, offsets: str) -> None:
    model = create_model("shiftresnet20", expansion=2, offsets=offsets).eval()
    assert load_weights(model, t7) == tuple(k for k in model.state_dict() if k.endswith("num_batches_tracked"))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_close("logits", model(x), official(x))


def test_official_state_dict_of_today_loads_as_well(official: ResNet, tmp_path: Path) -> None:
    torch.save({"state_dict": nn.DataParallel(official).state_dict()}, tmp_path / "net.pth")
    model = create_model("shiftresnet20", expansion=2).eval()
    assert load_weights(model, tmp_path / "net.pth") == ()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_close("logits", model(x), official(x))


def test_one_saved_on_the_cpu(official: ResNet, tmp_path: Path) -> None:
    Stream(Global("torch", "FloatStorage")).write(tmp_path / "cpu.t7", {"net": official, "acc": 1.0, "epoch": 0})
    state = read_state_dict(tmp_path / "cpu.t7")
    assert torch.equal(state["layer3.0.shortcut.0.weight"], official.layer3[0].shortcut[0].weight)


def test_wrong_expansion_is_said(t7: Path) -> None:
    with pytest.raises(StarshiftError, match=r"of another shape \(stages.0.0.conv1.conv.weight: file \(32, 16, 1, 1\)"):
        load_weights(create_model("shiftresnet20", expansion=3), t7)


def test_the_rest_of_the_file_is_readable(t7: Path) -> None:
    value = load_inert(t7)
    assert value["acc"] == 90.5 and value["epoch"] == 163
    assert isinstance(value["net"], Inert) and type(value["net"]).__module__ == "models.resnet"
    assert len(module_state_dict(value["net"])) == len([k for k in ResNet(2).state_dict() if "num_batches" not in k])


def test_whole_module_in_the_zip_format(official: ResNet, tmp_path: Path) -> None:
    torch.save({"net": official}, tmp_path / "net.pth")
    state = read_state_dict(tmp_path / "net.pth")
    for key, value in official.state_dict().items():
        assert torch.equal(state[key], value), key


def test_training_arguments_beside_the_weights(tmp_path: Path) -> None:
    """As timm's training script, and so the official StarNet, saves: arguments of a foreign class in the file."""
    model = create_model("starnet_s050", num_classes=4)
    torch.save({"state_dict": model.state_dict(), "args": argparse.Namespace(lr=0.003)}, tmp_path / "starnet.pth.tar")
    other = create_model("starnet_s050", num_classes=4)
    assert load_weights(other, tmp_path / "starnet.pth.tar") == ()
    assert torch.equal(other.head.weight, model.head.weight)


def _attacks(marker: Path) -> dict[str, Call]:
    run = Call(Global("posix", "system"), (f"touch {marker}",))
    code = f"open({str(marker)!r}, 'w').write('x')"
    fetched = Call(Global("__builtin__", "getattr"), (Global("os", "path"), "sep"))
    return {
        "system": run,
        "eval": Call(Global("__builtin__", "eval"), (code,)),
        "getattr": Call(fetched, (f"touch {marker}",)),
        "state": Call(Global("models.resnet", "ResNet"), (), {"_parameters": OrderedDict(a=run)}, new=True),
        "subprocess": Call(Global("subprocess", "Popen"), (["touch", str(marker)],), {"args": 1}),
        "torch": Call(Global("torch.serialization", "load"), (str(marker),)),
    }


@pytest.mark.parametrize("kind", list(_attacks(Path("x"))))
def test_code_in_a_stream_never_runs(kind: str, official: ResNet, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    Stream().write(tmp_path / "evil.t7", {"net": official, "acc": _attacks(marker)[kind], "epoch": 1})
    assert len(read_state_dict(tmp_path / "evil.t7")) > 50  # the weights beside it are fine
    Stream().write(tmp_path / "worse.t7", _attacks(marker)[kind])
    with pytest.raises(StarshiftError, match="no named tensors"):
        read_state_dict(tmp_path / "worse.t7")
    assert not marker.exists()


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def test_code_in_a_zip_or_a_bare_pickle_never_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"state_dict": {"a": torch.ones(2)}, "extra": _Evil(marker)}, tmp_path / "evil.pth")
    assert list(read_state_dict(tmp_path / "evil.pth")) == ["a"]
    (tmp_path / "evil.t7").write_bytes(pickle.dumps(_Evil(marker), protocol=2))
    with pytest.raises(StarshiftError, match=r"evil\.t7"):
        read_state_dict(tmp_path / "evil.t7")
    assert not marker.exists()


def test_the_attack_files_are_real(tmp_path: Path) -> None:
    """The same bytes do run in a plain unpickler: the tests above could fail."""
    marker = tmp_path / "ran"
    pickle.loads(Stream().dumps(_attacks(marker)["system"]))
    assert marker.exists()


def test_tensors_may_not_reach_beyond_their_storage(tmp_path: Path) -> None:
    stream = Stream()
    tensor = stream._tensor(torch.ones(4))
    for args in ((0, (400,), (1,)), (3, (4,), (1,)), (0, (1 << 40,), (0,)), (-1, (2,), (1,))):
        Stream.write(stream, tmp_path / "far.t7", {"a": Call(tensor.function, (tensor.args[0], *args))})
        with pytest.raises(StarshiftError, match="damaged"):
            load_inert(tmp_path / "far.t7")


def test_a_storage_larger_than_the_file_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    stream = Stream()
    call = stream._tensor(torch.ones(4))
    pid = (*call.args[0].pid[:4], 1 << 45, None)
    stream.write(tmp_path / "big.t7", {"a": Call(call.function, (type(call.args[0])(pid), *call.args[1:]))})
    with pytest.raises(StarshiftError, match="larger than the file"):
        load_inert(tmp_path / "big.t7")


def test_truncated_and_foreign_files(t7: Path, tmp_path: Path) -> None:
    data = t7.read_bytes()
    for keep in (10, 200, len(data) // 2, len(data) - 7):
        (tmp_path / "cut.t7").write_bytes(data[:keep])
        with pytest.raises(StarshiftError, match=r"cut\.t7"):
            read_state_dict(tmp_path / "cut.t7")
    (tmp_path / "photo.pth").write_bytes(b"\xff\xd8\xff\xe0 no weights at all")
    with pytest.raises(StarshiftError, match=r"photo\.pth"):
        read_state_dict(tmp_path / "photo.pth")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(StarshiftError, match="not one of PyTorch's"):
        load_inert(tmp_path / "a.zip")
