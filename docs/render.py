# SPDX-License-Identifier: Apache-2.0
"""Renders the tables of README and docs from results/*.csv and the models themselves: ``make docs``.

A page marks a table's place by ``<!-- table: NAME -->`` and ``<!-- /table -->``; NAME is a function of this file.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- /table -->)", re.S)
README_MODELS = (
    *(f"starnet_{size}" for size in ("s050", "s100", "s150", "s1", "s2", "s3", "s4")),
    *("shiftnet_a", "shiftnet_b", "shiftnet_c"),
    *("shiftresnet20", "shiftresnet56", "shiftresnet110"),
    *("demonet_d12_w192", "starnet_s050_32px"),
)


def models() -> str:
    """The models of the README: our counts beside the published accuracy."""
    from starshift.models import model_info

    rows = []
    for name in README_MODELS:
        info = model_info(name)
        top1 = ", ".join(f"{value} ({data})" for data, value in info.published_top1.items())
        macs = f"{info.macs_folded / 1e6:,.0f}M"
        rows.append((f"`{name}`", f"{info.params / 1e6:.2f}M", macs, f"{info.size[0]}", top1 or "-"))
    return table(("model", "parameters", "multiply-adds", "pixels", "published top-1 %"), rows)


def cifar10() -> str:
    """Networks trained by ``starshift train`` on CIFAR-10 on two CPU cores."""
    rows = [
        (
            f"`{r['model']}`",
            r["evaluated"],
            f"{float(r['top1']):.2f}",
            f"{float(r['top5']):.2f}",
            r["n"],
            r["epochs"],
            f"{float(r['train_seconds']) / 60:.0f}",
            r["cpu"] + f", {r['cores']} cores",
            r["commit"],
        )
        for r in read("cifar10.csv")
    ]
    header = ("model", "evaluated", "top-1 %", "top-5 %", "test images", "epochs", "training, min", "machine", "commit")
    return table(header, rows)


def loader() -> str:
    """Our loaders beside torchvision's, both on one core in the same run."""
    rows = [
        (
            r["images"],
            r["path"],
            f"{float(r['peer_images_per_s']):.0f}",
            f"{float(r['ours_images_per_s']):.0f}",
            f"{float(r['ratio']):.2f}",
            f"{float(r['ratio_low']):.2f} to {float(r['ratio_high']):.2f}",
            r["cpu"],
            r["commit"],
        )
        for r in read("loader.csv")
    ]
    header = ("images", "path", "peer, images/s", "ours, images/s", "ratio", "lowest to highest", "machine", "commit")
    return table(header, rows)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header)]
    lines += [["---"] * len(lines[0]), *(list(row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def read(name: str) -> list[dict[str, str]]:
    with (ROOT / "results" / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


TABLES: dict[str, Callable[[], str]] = {"models": models, "cifar10": cifar10, "loader": loader}


def rendered() -> dict[Path, str]:
    """Every page that has a table, with its tables made anew."""
    pages = {}
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        if MARKED.search(text):
            pages[path] = MARKED.sub(lambda m: m[1] + TABLES[m[2]]() + m[3], text)
    return pages


if __name__ == "__main__":
    for page, content in rendered().items():
        changed = page.read_text(encoding="utf-8") != content
        page.write_text(content, encoding="utf-8")
        print(f"{'rendered' if changed else 'fresh   '} {page.relative_to(ROOT)}")
