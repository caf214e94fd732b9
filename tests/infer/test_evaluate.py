# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from starshift import machine
from starshift.data import ImageLoader, ImageSet, eval_loader
from starshift.deploy import TrainedOn
from starshift.errors import StarshiftError
from starshift.infer import evaluate, load
from starshift.models import load_model
from starshift.preprocessing import Preprocessing
from tests.tolerance import assert_close


class Oracle:
    """Answers each batch with rows of a fixed table of logits, in order."""

    name = "oracle"
    preprocessing = Preprocessing((8, 8))
    trained_on = TrainedOn()
    trained = True

    def __init__(self, classes: tuple[str, ...], table: Tensor) -> None:
        self.classes, self.table, self.at = classes, table, 0

    def logits(self, batch: Tensor) -> Tensor:
        self.at += len(batch)
        return self.table[self.at - len(batch) : self.at]


def test_scores_are_what_a_loop_over_the_logits_gives(labelled: Path) -> None:
    table = torch.randn(15, 3, generator=torch.Generator().manual_seed(1)) * 2
    targets = torch.arange(3).repeat_interleave(5)  # the images come class by class, the broken one left out
    found = evaluate(Oracle(("cat", "dog", "eel"), table), labelled, batch_size=4, workers=0)
    predicted = table.argmax(1)
    assert found.n == 15
    assert found.top1 == pytest.approx(100 * (predicted == targets).float().mean().item())
    assert found.top5 == 100  # three classes
    assert found.loss == pytest.approx(torch.nn.functional.cross_entropy(table, targets).item())
    for t in range(3):
        for p in range(3):
            assert found.confusion[t][p] == int(((targets == t) & (predicted == p)).sum())
    assert [c.n for c in found.classes] == [5, 5, 5]
    assert [c.correct for c in found.classes] == [found.confusion[i][i] for i in range(3)]


def test_top5_counts_the_five_highest(labelled: Path) -> None:
    classes = ("cat", "dog", "eel", "f", "g", "h", "i")
    table = torch.zeros(15, 7)
    table[:, 3:] = torch.arange(1, 5).float()
    table[:5, 0] = 0.5  # cats: fifth
    table[5:10, 0] = 0.5  # dogs: sixth at best
    table[10:, 2] = 9  # eels: first
    found = evaluate(Oracle(classes, table), labelled, batch_size=8, workers=0)
    assert found.top1 == pytest.approx(100 / 3)
    assert found.top5 == pytest.approx(200 / 3)
    assert found.classes[0].mistaken_for == "i"
    assert found.classes[3].top1 is None and found.classes[3].n == 0


def test_unreadable_images_are_listed_and_left_out(small_model: Path, labelled: Path) -> None:
    found = evaluate(small_model, labelled, batch_size=4, workers=0)
    assert found.n == 15
    ((name, reason),) = found.skipped
    assert name.endswith("dog/broken.jpg") and reason


def test_workers_and_batches_do_not_change_the_result(small_model: Path, labelled: Path) -> None:
    one = evaluate(small_model, labelled, batch_size=1, workers=0)
    two = evaluate(small_model, labelled, batch_size=7, workers=2)
    assert one.confusion == two.confusion
    assert one.loss == pytest.approx(two.loss)


@pytest.mark.parametrize(("cores", "workers"), [(128, 8), (4, 3), (1, 0)])
def test_workers_are_at_most_eight_and_leave_a_core(
    cores: int, workers: int, tmp_path: Path, make_photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cat", "dog", "eel"):
        make_photos(tmp_path / name, 5)
    chosen: list[int] = []

    def loader(images: ImageSet, preprocessing: Preprocessing, *, batch_size: int, workers: int) -> ImageLoader:
        chosen.append(workers)
        return eval_loader(images, preprocessing, batch_size=batch_size, workers=0)

    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr("os.cpu_count", lambda: 96)
    monkeypatch.setitem(evaluate.__globals__, "eval_loader", loader)
    evaluate(Oracle(("cat", "dog", "eel"), torch.zeros(15, 3)), tmp_path, batch_size=2)
    assert chosen == [workers]


def test_the_exported_file_scores_like_the_run(small_model: Path, onnx_file: Path, labelled: Path) -> None:
    run, file = (evaluate(m, labelled, workers=0) for m in (small_model, onnx_file))
    assert file.confusion == run.confusion
    assert file.loss == pytest.approx(run.loss, rel=1e-4)


def test_a_data_set_in_splits_is_measured_on_its_held_out_part(
    small_model: Path, labelled: Path, tmp_path: Path
) -> None:
    (tmp_path / "val").symlink_to(labelled)
    assert evaluate(small_model, tmp_path, workers=0).n == 15


def test_other_classes_are_refused_by_name(small_model: Path, tmp_path: Path, make_photos) -> None:
    make_photos(tmp_path / "cat", 1)
    make_photos(tmp_path / "walrus", 1)
    with pytest.raises(StarshiftError, match="walrus"):
        evaluate(small_model, tmp_path, workers=0)


def test_only_unreadable_images_is_an_error_that_says_why(small_model: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(b"junk")
    with pytest.raises(StarshiftError, match=r"none of the 2 images .*a\.jpg"):
        evaluate(small_model, tmp_path, workers=0)


def test_digits_are_measured_on_the_part_that_training_held_out(tmp_path: Path) -> None:
    from starshift.data import open_data

    seen: list[int] = []

    class Counter(Oracle):
        trained_on = TrainedOn("digits", {"val_fraction": 0.4, "seed": 7})

        def logits(self, batch: Tensor) -> Tensor:
            seen.append(len(batch))
            return torch.zeros(len(batch), 10)

    found = evaluate(Counter(tuple("0123456789"), torch.empty(0)), "digits", workers=0)
    held_out = open_data("digits", val_fraction=0.4, seed=7).val
    assert found.n == sum(seen) == len(held_out)
    assert [c.n for c in found.classes] == [held_out.targets.count(i) for i in range(10)]


def test_json_and_csv_hold_the_result(small_model: Path, labelled: Path, tmp_path: Path) -> None:
    found = evaluate(small_model, labelled, workers=0)
    found.write(tmp_path / "a.json")
    read = json.loads((tmp_path / "a.json").read_text())
    assert read["top1"] == found.top1 and read["n"] == 15
    assert read["confusion"] == [list(row) for row in found.confusion]
    text = io.StringIO()
    found.write_csv(text)
    rows = list(csv.DictReader(io.StringIO(text.getvalue())))
    assert [r["class"] for r in rows] == ["cat", "dog", "eel", "(all)"]
    assert [int(r["correct"]) for r in rows[:3]] == [c.correct for c in found.classes]
    with pytest.raises(StarshiftError, match=r"\.csv or \.json"):
        found.write(tmp_path / "a.xml")


def test_progress_reaches_the_total(small_model: Path, labelled: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    evaluate(
        small_model, labelled, batch_size=4, workers=0, on_progress=lambda done, total: calls.append((done, total))
    )
    assert calls[-1] == (16, 16) and calls == sorted(calls)


def test_loading_folds_but_keeps_the_logits(small_model: Path) -> None:
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = load_model(small_model).model.eval()(images)
    assert_close("logits", load(small_model, device="cpu").logits(images), expected)


def test_a_run_folder_is_opened_by_its_model(small_model: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(small_model)
    (tmp_path / "config.yaml").write_text("data: digits\nseed: 3\nval_fraction: 0.3\nlr: 0.1\n")
    for path in (tmp_path, tmp_path / "model"):
        predictor = load(path)
        assert predictor.classes == ("cat", "dog", "eel")
        assert predictor.trained_on == TrainedOn("digits", {"val_fraction": 0.3, "seed": 3})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smal", "no run at .* Did you mean 'small'"),
        ("notes.txt", r"end in .*\.onnx"),
        ("small", "no model|config.json"),
    ],
)
def test_a_wrong_path_is_explained(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(StarshiftError, match=message):
        load(tmp_path / name)


@pytest.mark.parametrize("device", ["cuda:63", "gpu", "vax"])
def test_a_device_that_is_not_here_is_refused(small_model: Path, device: str) -> None:
    with pytest.raises(StarshiftError, match=f"no device '{device}'"):
        load(small_model, device=device)
