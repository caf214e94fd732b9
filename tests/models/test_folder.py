# SPDX-License-Identifier: Apache-2.0
"""Model folders: what we save loads again here, in timm with us, and in timm alone only if it is the same network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from starshift.errors import StarshiftError
from starshift.models import LoadedModel, create_model, load_model, load_weights, save_model
from starshift.models._folder import architecture
from starshift.preprocessing import Preprocessing
from tests.models.helpers import randomise, small
from tests.tolerance import assert_close

CLASSES = ["cat", "dog", "eel", "fox"]


def _save(folder: Path, name: str, channels: int = 3, **options) -> torch.nn.Module:
    model = randomise(small(name, num_classes=4, in_chans=channels, **options))
    preprocessing = Preprocessing((32, 32), (0.4,) * channels, (0.3,) * channels, "bilinear", 0.9)
    save_model(
        model, folder, name=name, model_args=options, classes=CLASSES, preprocessing=preprocessing, extra={"top1": 91.5}
    )
    return model


@pytest.mark.parametrize(
    ("name", "options", "channels"),
    [
        ("starnet_s050", {}, 3),
        ("starnet_s050", {"stem_stride": 1, "mode": ["sum", "star", "star", "star"]}, 1),
        ("starnet_s050_32px", {"drop_path_rate": 0.1}, 3),
        ("shiftresnet20", {"expansion": 3, "offsets": "interleaved"}, 3),
        ("shiftnet_c", {"sc2": True}, 3),
        ("demonet_d6_w192", {"patch_size": 4, "mode": "sum"}, 3),
        ("resnet20", {"reduction": 3, "reduction_mode": "block"}, 3),
        ("mobilenetv3_small_050", {"drop_rate": 0.1}, 3),
    ],
)
def test_round_trip(name: str, options: dict, channels: int, tmp_path: Path) -> None:
    model = _save(tmp_path / "run" / "model", name, channels, **options)
    x = torch.randn(2, channels, 32, 32)
    with torch.no_grad():
        expected = model(x)
        for path in (tmp_path / "run", tmp_path / "run" / "model", f"local-dir:{tmp_path}/run/model"):
            loaded = load_model(path)
            assert isinstance(loaded, LoadedModel) and not loaded.model.training
            assert torch.equal(loaded.model(x), expected)
        through_timm = timm.create_model(f"local-dir:{tmp_path}/run/model", pretrained=True).eval()
        assert_close("timm's logits", through_timm(x), expected)  # its own StarNet has other kernels
    assert loaded.name == name and loaded.classes == CLASSES
    assert loaded.preprocessing == Preprocessing((32, 32), (0.4,) * channels, (0.3,) * channels, "bilinear", 0.9)
    assert {k: loaded.model_args[k] for k in options} == options
    assert loaded.config["starshift"]["top1"] == 91.5
    config = timm.data.resolve_model_data_config(through_timm)
    assert config["input_size"] == (channels, 32, 32) and config["crop_pct"] == 0.9
    assert config["interpolation"] == "bilinear" and tuple(config["mean"]) == (0.4,) * channels
    assert list(through_timm.pretrained_cfg["label_names"]) == CLASSES


ALONE = """
import sys, timm, torch
for folder in sys.argv[1:]:
    try:
        model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
        print(type(model).__module__, float(model(torch.ones(1, 3, 32, 32)).sum()))
    except RuntimeError as error:
        print(error)
assert "starshift" not in sys.modules
"""


def test_timm_alone_loads_a_plain_starnet_and_no_other(tmp_path: Path) -> None:
    plain = _save(tmp_path / "plain", "starnet_s050", init="official", depths=(1, 1, 2, 1))
    _save(tmp_path / "strided", "starnet_s050", first_stride=1)
    _save(tmp_path / "gelu", "starnet_s050", act="gelu")
    folders = [str(tmp_path / name) for name in ("plain", "strided", "gelu")]
    run = subprocess.run([sys.executable, "-c", ALONE, *folders], capture_output=True, text=True, check=True)
    first, *others = run.stdout.splitlines()
    with torch.no_grad():
        expected = float(plain(torch.ones(1, 3, 32, 32)).sum())
    module, total = first.split()
    assert module == "timm.models.starnet" and float(total) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert others == ["Unknown model (starshift_starnet_s050)"] * 2


def test_architecture_written_for_timm() -> None:
    assert architecture("starnet_s1", {}) == ("starnet_s1", {})
    assert architecture("starnet_s1", {"act": "relu6", "stem_stride": 2, "mlp_ratio": 3}) == (
        "starnet_s1",
        {"mlp_ratio": 3},
    )
    assert architecture("starnet_s1", {"layout": "none"}) == ("starshift_starnet_s1", {"layout": "none"})
    assert architecture("shiftresnet20", {"expansion": 3}) == ("shiftresnet20", {"expansion": 3})
    assert architecture("resnet18", {}) == ("resnet18", {})


def test_a_folder_saved_by_timm(tmp_path: Path) -> None:
    model = timm.create_model("starnet_s050", num_classes=3).eval()
    timm.models.save_for_hf(model, tmp_path / "timm", model_config={"label_names": ["a", "b", "c"]})
    loaded = load_model(tmp_path / "timm")
    assert type(loaded.model).__module__ == "starshift.models.starnet" and loaded.classes == ["a", "b", "c"]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert (loaded.model(x) - model(x)).abs().max() < 1e-5
    assert load_weights(small("starnet_s050", num_classes=3), tmp_path / "timm") == ()


def test_saving_twice_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    _save(tmp_path / "model", "shiftresnet20", expansion=1)
    model = _save(tmp_path / "model", "shiftresnet20", expansion=2)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(load_model(tmp_path / "model").model(x), model(x))


def test_what_does_not_fit_is_not_saved(tmp_path: Path) -> None:
    model = small("shiftresnet20", num_classes=4)
    facts = {"name": "shiftresnet20", "model_args": {}, "classes": CLASSES, "preprocessing": Preprocessing((32, 32))}
    for change, says in (
        ({"classes": ["one"]}, "4 outputs, but 1 classes"),
        ({"preprocessing": Preprocessing((32, 32), (0.5,), (0.5,))}, "takes 3 channels"),
        ({"extra": {"x": object()}}, "plain values"),
    ):
        with pytest.raises(StarshiftError, match=says):
            save_model(model, tmp_path / "model", **{**facts, **change})
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StarshiftError, match="cannot write the model"):
        save_model(model, tmp_path / "file" / "model", **facts)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_made_by_the_folder_s_name(tmp_path: Path) -> None:
    model = _save(tmp_path / "m", "shiftresnet20", expansion=2)
    same = create_model(f"local-dir:{tmp_path}/m", pretrained=True)
    assert torch.equal(same.head.weight, model.head.weight)
    other = create_model(f"local-dir:{tmp_path}/m", pretrained=True, num_classes=7)
    assert other.head.weight.shape == (7, 64)
    assert torch.equal(other.stem[0].conv.weight, model.stem[0].conv.weight)
    fresh = create_model(f"local-dir:{tmp_path}/m")
    assert not torch.equal(fresh.stem[0].conv.weight, model.stem[0].conv.weight)


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(StarshiftError, match="no model at"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(StarshiftError, match="after the first epoch"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(StarshiftError, match="cannot read"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(StarshiftError, match="names no architecture"):
        load_model(tmp_path)
    _save(tmp_path / "m", "starnet_s050")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["starshift"]["name"] = "starnet_s100"
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(StarshiftError, match="does not fit"):
        load_model(tmp_path / "m")
