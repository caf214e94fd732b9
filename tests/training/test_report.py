# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from starshift.data.images import ArrayImages, FileImages
from starshift.errors import StarshiftError
from starshift.training.report import count, duration, write_report
from starshift.training.report.charts import Line, line_chart, nice_ticks
from starshift.training.report.confusion import confusion_matrix

METRICS = (
    "epoch",
    "step",
    "lr",
    "train_loss",
    "val_loss",
    "val_top1",
    "val_top5",
    "images_per_s",
    "seconds",
    "skipped",
)
EVIL = '<script>alert("x")</script>'


def _write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def make_run(run: Path, classes: list[str], outcomes: list[tuple[int, int, float]], epochs: int = 3) -> Path:
    """A run folder as training writes it; ``outcomes`` are (target, predicted, loss) of the validation images."""
    run.mkdir(exist_ok=True)
    summary = {
        "status": "finished", "model": "starnet_s1", "data": "photos", "classes": classes, "best_top1": 87.25,
        "best_epoch": 2, "epochs": epochs, "seconds": 3725.0, "images_per_s": 512.3, "params": 2_873_968,
        "macs": 425_000_000, "machine": {"cpu": "Test CPU"}, "versions": {"starshift": "0.1.0", "torch": "2.15"},
    }  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "config.yaml").write_text(yaml.safe_dump({"model": "starnet_s1", "data": "photos", "lr": 0.0123}))
    rows = [(e, 10 * e, 0.1 / e, 2.0 / e, 2.1 / e, 80 + e, 95 + e, 500, 1.5, 0) for e in range(1, epochs + 1)]
    _write_csv(run / "metrics.csv", METRICS, rows)  # type: ignore[arg-type]
    table = [(i, f"val/{i}.jpg", classes[t], classes[p], 0.5, loss) for i, (t, p, loss) in enumerate(outcomes)]
    _write_csv(run / "validation.csv", ("index", "name", "target", "predicted", "probability", "loss"), table)  # type: ignore[arg-type]
    return run


def make_images(n: int, side: int = 8) -> ArrayImages:
    pixels = np.arange(n, dtype=np.uint8)[:, None, None, None] + np.zeros((n, side, side, 3), np.uint8)
    return ArrayImages(pixels, [0] * n, ["a", "b"], [str(i) for i in range(n)])


class Page(HTMLParser):
    """Collects tags, data addresses and text, and that every tag that opens also closes."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.pictures: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.pictures += [v or "" for k, v in attrs if k == "src"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(report: Path) -> tuple[str, Page]:
    html = report.read_text(encoding="utf-8")
    return html, Page(html)


def test_the_report_tells_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["cat", "dog"], [(0, 0, 0.1), (0, 1, 2.5), (1, 1, 0.2), (1, 0, 1.5)])
    report = write_report(run, make_images(4))
    assert report == run / "report.html"
    _, page = read(report)
    text = " ".join(page.text)
    for fact in ("starnet_s1 on photos", "87.25%", "1h 02m", "2.87M", "425M", "512", "Test CPU", "0.0123", "2.15"):
        assert fact in text, fact
    for command in ("starshift eval", "starshift predict", "starshift export"):
        assert f"{command} {run}" in text
    assert page.tags.count("svg") == 3
    assert "Skipped images" not in text


def test_nothing_is_loaded_and_no_script_runs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["cat", "dog"], [(0, 1, 1.0)])
    html, page = read(write_report(run, make_images(1)))
    assert "script" not in page.tags and "link" not in page.tags
    assert page.pictures and all(p.startswith("data:image/") for p in page.pictures)
    assert not re.search(r"https?://", html)
    assert not any(name.startswith("on") for name, _ in page.attributes)


def test_strings_of_strangers_stay_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / EVIL.replace("/", "_"), [EVIL, '" onload="x'], [(0, 1, 1.0), (1, 0, 2.0), (1, 1, 0.1)])
    rows = (run / "validation.csv").read_text().replace("val/0.jpg", "'><img src=x onerror=alert(1)>")
    (run / "validation.csv").write_text(rows)
    _write_csv(run / "skipped.csv", ("name", "reason"), [(EVIL, "</table>" + EVIL)])
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"data": EVIL, "machine": {EVIL: EVIL}}))
    _, page = read(write_report(run, make_images(3)))
    assert "script" not in page.tags
    assert not {name for name, _ in page.attributes} & {"onload", "onerror"}
    assert EVIL in "".join(page.text)


def test_the_worst_come_first_with_their_pictures(tmp_path: Path) -> None:
    outcomes = [(0, 0, 9.0), (0, 1, 1.0), (1, 0, 3.0), (0, 1, 2.0)]
    html, page = read(write_report(make_run(tmp_path / "run", ["cat", "dog"], outcomes), make_images(4)))
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(p.partition(",")[2]))))[0, 0, 0] for p in page.pictures]
    assert shown == [2, 3, 1]  # each picture's pixels hold its index; image 0 is right, whatever its loss
    assert "3 of 4 are wrong" in html


def test_photographs_are_shown_small_and_a_lost_one_is_said(tmp_path: Path) -> None:
    Image.new("RGB", (900, 600), (10, 200, 30)).save(tmp_path / "0.jpg")
    images = FileImages(tmp_path, ["0.jpg", "gone.jpg"], [0, 1], ["cat", "dog"])
    run = make_run(tmp_path / "run", ["cat", "dog"], [(0, 1, 1.0), (1, 0, 2.0)])
    html, page = read(write_report(run, images))
    (picture,) = page.pictures
    assert max(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))).size) == 160
    assert "cannot be read" in html
    assert "no picture" in write_report(run, None).read_text()


@pytest.mark.parametrize("n", [2, 24, 25, 1000])
def test_confusion_is_readable_for_few_and_many_classes(tmp_path: Path, n: int) -> None:
    names = [f"class {i}" for i in range(n)]
    outcomes = [(i, i, 0.1) for i in range(n)] + [(0, 1, 3.0)] * 3
    html, page = read(write_report(make_run(tmp_path / "run", names, outcomes), None))
    assert '<td>class 0</td><td>class 1</td><td class="n">3</td><td class="n">75.0%</td>' in html
    if n <= 24:
        assert html.count('class="right') == n and "class 0 taken for class 1: 3 (75.0%)" in html
    else:
        (picture,) = page.pictures
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))))
        assert pixels.shape == (n, n, 4)
        assert np.count_nonzero(pixels[..., 3]) == n + 1 and pixels[0, 1, 3] > pixels[0, 0, 3] > 0
    assert len(html) < 2_000_000


def test_classes_are_listed_from_the_weakest(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["good", "bad", "unseen"], [(0, 0, 0.1), (1, 1, 0.1), (1, 0, 0.1)])
    html, _ = read(write_report(run, None))
    table = html[html.index("<h2>Classes") :]
    assert table.index("<td>bad</td>") < table.index("<td>good</td>") < table.index("<td>unseen</td>")


def test_skipped_images_are_listed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["a", "b"], [(0, 0, 0.1)])
    _write_csv(run / "skipped.csv", ("name", "reason"), [(f"{i}.jpg", "truncated") for i in range(203)])
    html, _ = read(write_report(run, None))
    assert "203 image(s) could not be read" in html and "... and 3 more" in html and "199.jpg" in html


def test_names_with_the_rarer_line_breaks(tmp_path: Path) -> None:
    """Which str.splitlines() knows and CSV does not."""
    run = make_run(tmp_path / "run", ["a", "b"], [(0, 0, 0.1)])
    _write_csv(run / "skipped.csv", ("name", "reason"), [("one\u2028two\x0b\x85.jpg", "truncated")])
    html, _ = read(write_report(run, None))
    assert "1 image(s) could not be read" in html and "two" in html and "truncated" in html


def test_a_run_with_a_summary_alone_still_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"status": "stopped", "classes": ["a", "b"]}')
    html, page = read(write_report(tmp_path, None))
    assert "stopped" in html and "svg" not in page.tags


def test_losses_that_are_not_numbers_are_left_out_of_the_curves(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["a", "b"], [(0, 1, float("nan"))])
    rows = [(1, 1, 0.1, "nan", 2.0, 50, "", 1, 1, 0), (2, 2, 0.1, 1.0, "inf", 60, "", 1, 1, 0)]
    _write_csv(run / "metrics.csv", METRICS, rows)  # type: ignore[arg-type]
    html, _ = read(write_report(run, None))
    assert "NaN" not in html and "nan" not in html and "inf" not in html


@pytest.mark.parametrize("name", ["summary.json", "validation.csv", "config.yaml"])
def test_a_broken_file_is_named_and_the_old_report_stays(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run", ["a", "b"], [(0, 0, 0.1)])
    before = write_report(run, None).read_text()
    (run / name).write_text(
        "{[" if name != "validation.csv" else "index,name,target,predicted,probability,loss\n0,x,z,a,1,1\n"
    )
    with pytest.raises(StarshiftError, match=f"{run}"):
        write_report(run, None)
    assert (run / "report.html").read_text() == before
    with pytest.raises(StarshiftError, match=r"no summary\.json"):
        write_report(tmp_path, None)


def test_a_chart_is_valid_and_holds_every_point() -> None:
    html = line_chart("A & B", [Line("one", [(1, 0.5), (2, 0.25), (3, 0.75)])], mark=2)
    root = ET.fromstring(html)
    circles = root.findall(".//circle")
    assert [c.findtext("title") for c in circles] == ["one 1: 0.5", "one 2: 0.25", "one 3: 0.75"]
    heights = [float(c.get("cy", "nan")) for c in circles]
    assert heights[1] > heights[0] > heights[2]  # y grows downwards
    marked = next(line for line in root.iter("line") if line.get("class") == "mark")
    assert marked.get("x1") == circles[1].get("cx")
    assert line_chart("empty", [Line("none", [])]) == ""
    assert ET.fromstring(line_chart("one point", [Line("p", [(1, 3.0)])])).findall(".//circle")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.013, 0.87), (-3, 250), (5, 5), (0, 0), (1e-6, 2e-6)])
def test_ticks_are_round_and_enclose(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 12
    assert len({round(b - a, 12) for a, b in pairwise(ticks)}) == 1


def test_numbers_for_people() -> None:
    assert [count(v) for v in (None, 12, 1234, 2_873_968, 1.42e9)] == ["-", "12", "1.23k", "2.87M", "1.42G"]
    assert [duration(v) for v in (None, 42.4, 125, 7830)] == ["-", "42s", "2m 05s", "2h 10m"]
    assert confusion_matrix([0, 0, 1], [0, 1, 1], 2).tolist() == [[1, 1], [0, 1]]
