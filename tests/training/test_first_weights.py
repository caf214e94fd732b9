# SPDX-License-Identifier: Apache-2.0
"""What a run starts from: published weights, a model by name, and the size of images that the model is made for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import _registry as registry
from typer.testing import CliRunner

from starshift.cli.main import app
from starshift.errors import StarshiftError
from starshift.models import create_model, load_model
from starshift.training import resolve, train
from tests.tolerance import assert_close
from tests.training.conftest import Train

WHERE = "_model_pretrained_cfgs"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of shiftresnet20 for ten classes, where timm looks for them."""
    torch.manual_seed(1)
    path = tmp_path / "published.pth"
    torch.save(create_model("shiftresnet20", expansion=1, num_classes=10).state_dict(), path)
    known = getattr(registry, WHERE)
    monkeypatch.setitem(known, "shiftresnet20", replace(known["shiftresnet20"], file=str(path)))
    return path


def test_published_weights_are_tuned_and_needed_once(published: Path, tiny_train: Train) -> None:
    run = tiny_train(pretrained=True, epochs=1, lr=1e-9).path
    config = resolve(run / "config.yaml")
    assert (config.recipe, config.pretrained, config.model_args) == ("finetune", True, {"expansion": 1})
    before, after = torch.load(published, weights_only=True), load_model(run).model.state_dict()
    for name, value in before.items():
        if value.ndim > 1 and not name.startswith("head."):
            assert_close(name, after[name], value)
    published.unlink()
    assert train(resume=run, epochs=2, quiet=True).status == "finished"


FIXED = {"model": "test_vit", "model_args": {}, "epochs": 1, "batch_size": 24}  # for 160 pixels


def test_a_model_made_for_one_size_keeps_it(tiny_train: Train) -> None:
    assert load_model(tiny_train(**FIXED).path).preprocessing.size == (160, 160)


def test_a_model_made_for_one_size_is_made_for_another(tiny_train: Train) -> None:
    run = tiny_train(img_size=32, **FIXED).path
    loaded = load_model(run)
    assert (loaded.preprocessing.size, loaded.model_args["img_size"]) == ((32, 32), 32)
    assert loaded.model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert train(resume=run, epochs=2, quiet=True).status == "finished"


@pytest.mark.parametrize(("model", "img_size"), [("twins_pcpvt_small", 40), ("test_vit", 8)])
def test_a_size_that_cannot_be_leaves_no_folder(model: str, img_size: int, tiny_train: Train, tmp_path: Path) -> None:
    with pytest.raises(StarshiftError, match=f"{img_size}"):
        tiny_train(**{**FIXED, "model": model}, img_size=img_size)
    assert not (tmp_path / "run").exists()


def test_what_announcing_finds_wrong_leaves_no_folder(
    tiny_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count_macs(*_: Any) -> int:
        raise StarshiftError("images of 8x8 do not fit")

    with monkeypatch.context() as patch, pytest.raises(StarshiftError, match="do not fit"):
        patch.setattr("starshift.training.setup.count_macs", count_macs)
        tiny_train(epochs=1)
    assert tiny_train(epochs=1).path == tmp_path / "run"


def test_the_command_has_an_option_for_it() -> None:
    shown = CliRunner().invoke(app, ["train", "digits", "--model=starnet_s1", "--pretrained", "--show-settings"])
    assert shown.exit_code == 0, shown.output
    assert "pretrained: true" in shown.stdout and "recipe: finetune" in shown.stdout
