# SPDX-License-Identifier: Apache-2.0
"""Settings: read from YAML, checked by name and type, written so that they read back equal."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from starshift.errors import StarshiftError
from starshift.training.config import TrainConfig, parse_assignments, recipes, resolve


def test_the_package_has_the_recipes_it_promises() -> None:
    assert set(recipes()) == {"starnet-imagenet", "demonet-imagenet", "shiftresnet-cifar", "finetune", "muon", "quick"}


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_reads_back_equal_from_its_own_yaml(name: str, tmp_path: Path) -> None:
    config = resolve(name, {"data": "digits", "model_args.expansion": 3, "mean": [0.5, 0.5, 0.5]})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert resolve(tmp_path / "config.yaml") == config
    assert config.recipe == name


def test_published_settings() -> None:
    cifar, starnet = resolve("shiftresnet-cifar"), resolve("starnet-imagenet")
    assert (cifar.opt, cifar.lr, cifar.momentum, cifar.weight_decay, cifar.batch_size) == (
        "momentum",
        0.1,
        0.9,
        5e-4,
        128,
    )
    assert (cifar.epochs, cifar.decay_milestones, cifar.crop_padding) == (164, (82, 123), 4)
    assert (starnet.epochs, starnet.opt, starnet.lr_base, starnet.lr_base_size) == (300, "adamw", 3e-3, 8 * 256)
    assert (starnet.aa, starnet.cutmix, starnet.weight_decay) == ("rand-m1-mstd0.5-inc1", 0.2, 0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, r"unknown setting 'epoch'. Did you mean 'epochs'\?"),
        ({"learning_rate": 1}, "unknown setting 'learning_rate'"),
        ({"epochs": 2.5}, "epochs takes a whole number, not 2.5"),
        ({"epochs": "many"}, "epochs takes a whole number"),
        ({"epochs": 0}, "epochs must be above zero"),
        ({"lr": "fast"}, "lr takes a number or null, not 'fast'"),
        ({"hflip": True}, "hflip takes a number, not True"),
        ({"model_ema": 1}, "model_ema takes true or false, not 1"),
        ({"scale": [0.5]}, "scale takes a list of 2 numbers or null"),
        ({"model_args": "big"}, "model_args takes a mapping"),
        ({"precision": "bf61"}, "precision is one of fp32, bf16, fp16; not 'bf61'. Did you mean 'bf16'"),
        ({"sched": "cosin"}, "Did you mean 'cosine'"),
        ({"pct_start": 1.5}, "pct_start must be between 0 and 1"),
        ({"momentum": -0.1}, "momentum must be between 0 and 1"),
        ({"decay_epochs": 0}, "decay_epochs must be above zero"),
        ({"smoothing": 2}, "smoothing must be between 0 and 1"),
        ({"weight_decay": -1}, "weight_decay must not be negative"),
        ({"mixup": 0.2, "batch_size": 9}, "batch_size must be even"),
        ({"checkpoint_minutes": -1}, "checkpoint_minutes must not be negative"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StarshiftError, match=message):
        resolve("quick", settings)


def test_a_number_that_yaml_takes_for_text_is_a_number() -> None:
    assert resolve("quick", parse_assignments(["lr=1e-3"])).lr == 1e-3


def test_assignments_reach_every_kind_of_setting() -> None:
    pairs = [
        "lr=0.2",
        "batch-size=16",
        "model_args.expansion=6",
        "scale=[0.5, 1]",
        "aa=rand-m9",
        "model_ema=true",
        "img_size=null",
    ]
    config = resolve("quick", parse_assignments(pairs))
    assert (config.lr, config.batch_size, config.model_args, config.scale) == (0.2, 16, {"expansion": 6}, (0.5, 1.0))
    assert (config.aa, config.model_ema, config.img_size) == ("rand-m9", True, None)
    with pytest.raises(StarshiftError, match="key=value"):
        parse_assignments(["lr"])


def test_recipe_files() -> None:
    with pytest.raises(StarshiftError, match=r"no recipe 'quik' .*Did you mean 'quick'\?"):
        resolve("quik")


def test_a_file_may_start_from_a_recipe_and_is_named_in_its_errors(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("recipe: shiftresnet-cifar\nepochs: 7\n")
    assert asdict(resolve(mine)) == {**asdict(resolve("shiftresnet-cifar")), "epochs": 7}
    mine.write_text("epocs: 7\n")
    with pytest.raises(StarshiftError, match=r"mine.yaml: unknown setting 'epocs'. Did you mean 'epochs'\?"):
        resolve(mine)
    mine.write_text("[1, 2]\n")
    with pytest.raises(StarshiftError, match="key: value"):
        resolve(mine)
    mine.write_text("a: [1\n")
    with pytest.raises(StarshiftError, match="not a YAML file"):
        resolve(mine)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        TrainConfig().epochs = 3  # type: ignore[misc]
