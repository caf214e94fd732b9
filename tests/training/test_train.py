# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind, what each setting does to it, and what each mistake is answered with."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from starshift.errors import StarshiftError
from starshift.models import load_model
from starshift.training import Run, TrainConfig, recipes, resolve, train
from starshift.training.epochs import COLUMNS
from starshift.training.evaluation import validate
from tests.tolerance import assert_close
from tests.training.conftest import TINY, Train


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "model" / "model.safetensors")


def rows(run: Run) -> list[dict[str, str]]:
    return list(csv.DictReader((run.path / "metrics.csv").open()))


@pytest.fixture(scope="module")
def finished(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """A run of six epochs, and what it printed."""
    printed = io.StringIO()
    settings = {**TINY, "quiet": False, "epochs": 6, "stream": printed, "out": tmp_path_factory.mktemp("runs") / "run"}
    return train(str(tiny_data), **settings), printed.getvalue()


def test_the_run_folder_holds_all(finished: tuple[Run, str]) -> None:
    run, _ = finished
    for name in (
        "config.yaml",
        "summary.json",
        "report.html",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "model/config.json",
    ):
        assert (run.path / name).stat().st_size > 0, name
    assert list((run.path / "tensorboard").glob("events.*"))
    assert not list(run.path.rglob("*.partial")) and not (run.path / "skipped.csv").exists()
    table = rows(run)
    assert tuple(table[0]) == COLUMNS and [row["epoch"] for row in table] == [str(e) for e in range(1, 7)]
    assert [int(row["step"]) for row in table] == [6 * e for e in range(1, 7)]
    summary = json.loads((run.path / "summary.json").read_text())
    assert Run.open(run.path) == run and summary == run.summary
    assert run.status == "finished" and run.best_top1 == max(float(row["val_top1"]) for row in table)
    assert summary["classes"] == ["blue", "green", "red"] and summary["params"] == sum(
        p.numel() for p in load_model(run.path).model.parameters()
    )


def test_it_learns(finished: tuple[Run, str]) -> None:
    run, _ = finished
    assert run.best_top1 >= 75  # colours: 33% by chance
    assert float(rows(run)[-1]["train_loss"]) < float(rows(run)[0]["train_loss"])


def test_what_it_prints(finished: tuple[Run, str]) -> None:
    run, printed = finished
    assert "shiftresnet20" in printed and "3 classes, 48 images to train on, 12 to validate on" in printed
    assert "fp32 on cpu" in printed and str(run.path) in printed and "recipe quick" in printed
    assert sum(line.startswith("epoch ") for line in printed.splitlines()) == 6


def test_validation_csv_is_about_the_model_that_is_kept(finished: tuple[Run, str]) -> None:
    run, _ = finished
    table = list(csv.DictReader((run.path / "validation.csv").open()))
    assert [int(row["index"]) for row in table] == list(range(12))
    assert all(Path(row["name"]).is_file() for row in table)
    right = 100 * sum(row["target"] == row["predicted"] for row in table) / 12
    assert math.isclose(right, run.best_top1, abs_tol=1e-3)
    best = next(row for row in rows(run) if int(row["epoch"]) == run.best_epoch)
    assert math.isclose(sum(float(row["loss"]) for row in table) / 12, float(best["val_loss"]), rel_tol=1e-3)


def test_its_config_runs_again_to_the_same_weights(finished: tuple[Run, str], tmp_path: Path) -> None:
    run, _ = finished
    again = train(recipe=run.path / "config.yaml", out=tmp_path / "again", quiet=True)
    assert (again.path / "model" / "model.safetensors").read_bytes() == (
        run.path / "model" / "model.safetensors"
    ).read_bytes()
    assert resolve(again.path / "config.yaml") == resolve(run.path / "config.yaml")


@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_trains(recipe: str, tiny_train: Train) -> None:
    run = tiny_train(recipe=recipe, epochs=1, batch_size=24, img_size=8)
    assert run.status == "finished" and rows(run)[0]["step"] == "2"
    assert all(math.isfinite(float(rows(run)[0][name])) for name in ("train_loss", "val_loss"))


def test_ema_weights_are_the_ones_kept(tiny_train: Train) -> None:
    run = tiny_train(model_ema=True, model_ema_decay=0.5)
    state = torch.load(run.path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    kept = weights(run)
    assert any(not torch.equal(value, state[f"model.{name}"]) for name, value in kept.items())
    assert all(torch.equal(value, state[f"ema.module.{name}"]) for name, value in kept.items())


def test_accumulated_gradients_equal_a_larger_batch(tiny_train: Train) -> None:
    # layer norms only: batch norm would see the smaller batches
    settings = {
        "model": "demonet_d12_w32",
        "model_args": {"patch_size": 4},
        "img_size": 8,
        "opt": "momentum",
        "lr": 0.05,
        "epochs": 1,
    }
    whole = tiny_train("whole", batch_size=16, **settings)
    parts = tiny_train("parts", batch_size=8, grad_accum_steps=2, **settings)
    assert rows(whole)[0]["step"] == rows(parts)[0]["step"] == "3"
    for name, value in weights(whole).items():
        assert_close(name, weights(parts)[name], value)


def test_bfloat16_on_the_cpu(tiny_train: Train) -> None:
    half, full = tiny_train("half", precision="bf16"), tiny_train("full")
    assert all(math.isfinite(float(row["train_loss"])) for row in rows(half))
    assert rows(half)[0]["train_loss"] != rows(full)[0]["train_loss"]
    assert all(value.dtype != torch.bfloat16 for value in weights(half).values())


def test_one_channel(tiny_train: Train) -> None:
    run = tiny_train(model_args={"expansion": 1, "in_chans": 1}, epochs=1)
    assert load_model(run.path).preprocessing.channels == 1


def test_fine_tuning_makes_a_new_head_and_keeps_the_rest(
    finished: tuple[Run, str], tiny_data: Path, tmp_path: Path
) -> None:
    run, _ = finished
    two = tmp_path / "two"
    for name in ("red", "green"):
        (two / name).parent.mkdir(exist_ok=True)
        (two / name).symlink_to(tiny_data / name)
    tuned = train(
        two, checkpoint=str(run.path), epochs=1, lr=1e-9, batch_size=8, workers=0, out=tmp_path / "tuned", quiet=True
    )
    config = resolve(tuned.path / "config.yaml")
    assert (config.recipe, config.model, config.model_args["expansion"]) == ("finetune", "shiftresnet20", 1)
    before, after = weights(run), weights(tuned)
    assert (before["head.weight"].shape[0], after["head.weight"].shape[0]) == (3, 2)
    for name, value in before.items():
        if value.ndim > 1 and not name.startswith("head."):
            assert_close(name, after[name], value)
    with pytest.raises(StarshiftError, match="name it with --model"):
        train(two, checkpoint=str(run.path / "checkpoints" / "best.ckpt"), out=tmp_path / "x", quiet=True)


def test_a_checkpoint_file_of_a_run_starts_another(finished: tuple[Run, str], tiny_train: Train) -> None:
    run, _ = finished
    tuned = tiny_train(checkpoint=str(run.path / "checkpoints" / "best.ckpt"), epochs=1, lr=1e-9, recipe="quick")
    assert (
        abs(float(rows(tuned)[0]["val_top1"]) - run.best_top1) < 20
    )  # one epoch at no rate: only its batch norms moved


def test_bad_images_are_left_out_and_listed(tiny_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for image in tiny_data.rglob("*.png"):
        copy = data / image.relative_to(tiny_data)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(image.read_bytes())
    for name in ("03", "07", "11"):
        (data / "red" / f"{name}.png").write_bytes(b"not an image")
    printed = io.StringIO()
    run = train(str(data), **{**TINY, "quiet": False, "stream": printed, "out": tmp_path / "run"})
    listed = list(csv.DictReader((run.path / "skipped.csv").open()))
    assert {Path(row["name"]).name for row in listed} <= {"03.png", "07.png", "11.png"} and listed
    assert run.summary["skipped_images"] == len(listed) and all(row["reason"] for row in listed)
    assert f"{len(listed)} image(s) could not be read" in printed.getvalue()
    assert sum(int(row["skipped"]) for row in rows(run)) >= len(listed)


def test_small_data_gets_a_small_batch(tiny_train: Train) -> None:
    run = tiny_train(batch_size=500, mixup=0.1)
    assert resolve(run.path / "config.yaml").batch_size == 48


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tiny_train: Train, tmp_path: Path) -> None:
    explode = {
        "opt": "momentum",
        "lr": 1e-3,
        "sched": "step",
        "decay_epochs": 1,
        "warmup_epochs": 0,
        "decay_rate": 1e30,
        "clip_grad": None,
    }
    with pytest.raises(
        StarshiftError, match=r"NaN or infinite in epoch 2 at step \d+ of 18.*last good checkpoint.*lower learning rate"
    ):
        tiny_train(epochs=3, **explode)
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 6
    assert all(value.isfinite().all() for value in last["state_dict"].values())
    assert len(list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))) == 1


def test_a_full_disk_is_named_and_keeps_the_last_checkpoint(
    tiny_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if (tmp_path / "run" / "checkpoints" / "best.ckpt").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StarshiftError, match=r"no space left to write the run folder .*run"):
        tiny_train(epochs=3)
    monkeypatch.undo()
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 6 and not list((tmp_path / "run").rglob("*.partial"))
    assert train(resume=tmp_path / "run", quiet=True).summary["epochs"] == 3


def test_out_folders_that_cannot_be_used(tiny_train: Train, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in ("file", "file/below"):
        with pytest.raises(StarshiftError, match=r"cannot write the run folder .*--out"):
            tiny_train(out)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thing").write_text("mine")
    with pytest.raises(StarshiftError, match="exists and is not empty"):
        tiny_train("used")
    assert sorted(p.name for p in (tmp_path / "used").iterdir()) == ["thing"]


def test_after_a_failed_first_epoch_the_corrected_command_has_the_same_folder(
    tiny_train: Train, tmp_path: Path
) -> None:
    with pytest.raises(StarshiftError, match="NaN or infinite in epoch 1"):
        tiny_train(lr=1e30, opt="momentum", sched="constant", warmup_epochs=0, clip_grad=None)
    assert (tmp_path / "run" / "config.yaml").is_file()
    assert tiny_train(epochs=1).status == "finished"


def test_the_default_folder_counts_up(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (train(str(tiny_data), **{**TINY, "epochs": 1}).path for _ in range(2))
    assert [str(p) for p in (first, second)] == [f"runs/shiftresnet20-{tiny_data.name}-{n}" for n in (1, 2)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "shiftresnt20"}, "Did you mean 'shiftresnet20'"),
        ({"model_args": {"expansoin": 3}}, "Did you mean 'expansion'"),
        ({"data": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"recipe": "quik"}, "Did you mean 'quick'"),
        ({"epohcs": 3}, "Did you mean 'epochs'"),
        ({"opt": "sgdd"}, "no optimiser 'sgdd'"),
        ({"opt": "sgd", "momentum": 0.0}, "opt sgd cannot be made with .*momentum 0, .*: Nesterov momentum requires"),
        ({"aa": "randaugment9"}, "aa"),
        ({"devices": "tpu"}, "devices is auto"),
        ({"devices": "cuda:1"}, "give the number alone .--devices 1.*CUDA_VISIBLE_DEVICES=1"),
        ({"model_args": {"expansion": "3e0"}}, "shiftresnet20 cannot be made with"),
        ({"precision": "fp16", "devices": "cpu"}, "fp16 needs a GPU"),
        ({"checkpoint": "/no/file.pth"}, "/no/file.pth"),
        ({"data": None}, "name the data"),
        # What would leave a run that cannot be opened.
        ({"pretrained": True}, "no pretrained weights for shiftresnet20"),
        ({"pretrained": True, "checkpoint": "a.pth"}, "give one of them"),
        ({"model_args": {"pretrained": True}}, "model_args.pretrained cannot be set: take --pretrained"),
        ({"model_args": {"num_classes": 5}}, "classes are those of the data"),
        ({"model_args": {"checkpoint_path": "a.pth"}}, "take --checkpoint"),
        ({"model_args": {"pretrained_cfg": "in1k"}}, "by the model's tag"),
        ({"model": "hf-hub:timm/resnet18.a1_in1k"}, "takes the name of a model.*--checkpoint"),
        ({"model": "local-dir:runs/a/model"}, "takes the name of a model.*--checkpoint"),
        ({"model": "resnet18.nonsense", "model_args": {}}, "Invalid pretrained tag"),
    ],
)
def test_mistakes_are_refused_before_a_folder_is_made(
    settings: dict[str, Any], message: str, tiny_train: Train, tmp_path: Path
) -> None:
    with pytest.raises(StarshiftError, match=message):
        tiny_train(**settings)
    assert not (tmp_path / "run").exists()


def test_validate_counts_like_a_plain_loop(finished: tuple[Run, str], tiny_data: Path) -> None:
    from starshift.data import eval_loader, open_data

    loaded = load_model(finished[0].path)
    source = open_data(str(tiny_data), seed=TrainConfig().seed)
    loader = eval_loader(source.val, loaded.preprocessing, batch_size=5, workers=0)
    found = validate(loaded.model, loader, classes=3, device=torch.device("cpu"), keep_rows=True)
    with torch.no_grad():
        logits = torch.cat([loaded.model(batch.image) for batch in loader])
    target = torch.tensor(source.val.targets)
    assert math.isclose(found.top1, 100 * float((logits.argmax(1) == target).float().mean()), abs_tol=1e-4)
    assert found.top5 == 100
    assert math.isclose(found.loss, float(torch.nn.functional.cross_entropy(logits, target)), rel_tol=1e-5)
    assert [row[0] for row in found.rows] == list(range(12))
