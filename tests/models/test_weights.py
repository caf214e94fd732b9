# SPDX-License-Identifier: Apache-2.0
"""Weights from the usual places, and what is said when they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from starshift.errors import StarshiftError
from starshift.models import WeightsError, create_model, load_weights
from tests.models.helpers import randomise, small


@pytest.fixture(scope="module")
def source() -> torch.nn.Module:
    return randomise(small("starnet_s050", num_classes=4))


def _write(model: torch.nn.Module, path: Path, kind: str) -> Path:
    state = model.state_dict()
    if kind == "safetensors":
        safetensors.torch.save_file(state, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    saved = {
        "bare": state,
        "official": {"epoch": 299, "state_dict": state, "metric": 73.5},
        "parallel": {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        "compiled": {"model": {f"_orig_mod.{k}": v for k, v in state.items()}},
        "lightning": {"state_dict": {f"model.{k}": v for k, v in state.items()}, "loops": {}},
        "averaged": {
            "state_dict": {
                **{f"model.{k}": torch.zeros_like(v) for k, v in state.items()},
                **{f"ema.module.{k}": v for k, v in state.items()},
            }
        },
        "timm": {"state_dict": {k: torch.zeros_like(v) for k, v in state.items()}, "state_dict_ema": state},
    }[kind]
    torch.save(saved, path)
    return path


@pytest.mark.parametrize(
    "kind", ["bare", "safetensors", "official", "parallel", "compiled", "lightning", "averaged", "timm"]
)
def test_layouts_of_checkpoints(kind: str, source: torch.nn.Module, tmp_path: Path) -> None:
    path = _write(source, tmp_path / "weights.pth", kind)
    model = create_model("starnet_s050", num_classes=4)
    assert load_weights(model, path) == ()
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_timms_weights_in_ours_and_ours_in_timms(source: torch.nn.Module, tmp_path: Path) -> None:
    theirs = timm.create_model("starnet_s050", num_classes=4)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = create_model("starnet_s050", num_classes=4, checkpoint_path=tmp_path / "theirs.pth")
    assert torch.equal(ours.stages[0][0].conv.weight, theirs.stages[0][0].conv.weight)
    torch.save(source.state_dict(), tmp_path / "ours.pth")
    load_weights(theirs, tmp_path / "ours.pth")
    assert torch.equal(source.stages[0][0].conv.weight, theirs.stages[0][0].conv.weight)


def test_pretrained_through_timm_takes_a_local_file(source: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(source.state_dict(), tmp_path / "s050.pth")
    overlay = {"file": str(tmp_path / "s050.pth"), "num_classes": 4}
    model = create_model("starnet_s050", pretrained=True, num_classes=7, in_chans=1, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.norm.weight, source.norm.weight) and model.head.weight.shape[0] == 7
    assert model.stem[0].conv.weight.shape[1] == 1  # timm sums the colours of the first convolution


def test_new_head_for_fine_tuning(source: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = small("starnet_s050", num_classes=9)
    fresh = model.head.weight.clone()
    with pytest.raises(WeightsError, match=r"Only the classifier differs: .*new_head=True"):
        load_weights(model, tmp_path / "w.pth")
    assert load_weights(model, tmp_path / "w.pth", new_head=True) == ("head.weight", "head.bias")
    assert torch.equal(model.head.weight, fresh)
    assert torch.equal(model.norm.running_var, source.norm.running_var)
    same = small("starnet_s050", num_classes=4)
    assert load_weights(same, tmp_path / "w.pth", new_head=True) == ()
    assert torch.equal(same.head.weight, source.head.weight)


def test_a_model_without_a_classifier_takes_a_file_with_one(source: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    bare = create_model("starnet_s050", num_classes=0)
    assert load_weights(bare, path, new_head=True) == ()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(bare.eval().forward_features(x), source.eval().forward_features(x))


def test_new_head_for_a_file_that_has_none(source: torch.nn.Module, tmp_path: Path) -> None:
    torch.save({k: v for k, v in source.state_dict().items() if "head" not in k}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"2 missing \(head.weight, head.bias\)"):
        load_weights(small("starnet_s050"), tmp_path / "w.pth")
    assert load_weights(small("starnet_s050"), tmp_path / "w.pth", new_head=True) == ("head.weight", "head.bias")


def test_new_head_of_a_timm_model(tmp_path: Path) -> None:
    torch.save(create_model("mobilenetv3_small_050", num_classes=3).state_dict(), tmp_path / "w.pth")
    kept = load_weights(create_model("mobilenetv3_small_050", num_classes=5), tmp_path / "w.pth", new_head=True)
    assert kept == ("classifier.weight", "classifier.bias")


def test_another_model_is_refused_with_a_list(source: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(source.state_dict(), tmp_path / "w.pth")
    before = small("starnet_s100", num_classes=4)
    state = {k: v.clone() for k, v in before.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_weights(before, tmp_path / "w.pth")
    message = str(error.value)
    assert "w.pth does not fit this StarNet" in message and "missing (stages.1.2.dwconv.conv.weight" in message
    assert "of another shape (stages.0.0.conv.weight: file (16, 32, 3, 3), model (20, 32, 3, 3)" in message
    assert "more)" in message and len(message) < 1500
    assert all(torch.equal(v, state[k]) for k, v in before.state_dict().items())  # nothing was half loaded
    with pytest.raises(WeightsError, match="unexpected"):
        load_weights(small("shiftresnet20"), tmp_path / "w.pth", strict=False)


def test_not_strict_loads_what_there_is(source: torch.nn.Module, tmp_path: Path) -> None:
    state = {k: v for k, v in source.state_dict().items() if not k.startswith("stages.3.")}
    torch.save({**state, "extra": torch.ones(1)}, tmp_path / "w.pth")
    kept = load_weights(small("starnet_s050", num_classes=4), tmp_path / "w.pth", strict=False)
    assert kept and all(key.startswith("stages.3.") for key in kept)


def test_missing_and_wrong_files(tmp_path: Path) -> None:
    model = small("starnet_s050")
    with pytest.raises(WeightsError, match="hf-hub"):
        load_weights(model, tmp_path / "nowhere.pth")
    with pytest.raises(WeightsError, match="no weights in"):
        load_weights(model, tmp_path)
    (tmp_path / "bad.safetensors").write_bytes(b"0123456789abcdef")
    with pytest.raises(WeightsError, match="damaged"):
        load_weights(model, tmp_path / "bad.safetensors")
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="no named tensors"):
        load_weights(model, tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(WeightsError):
        load_weights(model, tmp_path / "text.pth")
    with pytest.raises(StarshiftError):
        create_model("starnet_s050", checkpoint_path=tmp_path / "list.pth")
