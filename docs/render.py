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
        top1 = published(info.published_top1)
        macs = f"{info.macs_folded / 1e6:,.0f}M"
        rows.append((f"`{name}`", f"{info.params / 1e6:.2f}M", macs, f"{info.size[0]}", top1 or "-"))
    return table(("model", "parameters", "multiply-adds", "pixels", "published top-1 %"), rows)


def published(top1: dict[str, float]) -> str:
    """Accuracy by data set; where it depends on an option, from the lowest to the highest."""
    by_data: dict[str, list[float]] = {}
    for key, value in top1.items():
        by_data.setdefault(key.split()[0], []).append(value)
    ranges = ((data, "-".join(str(v) for v in sorted({min(values), max(values)}))) for data, values in by_data.items())
    return ", ".join(f"{spread} ({data})" for data, spread in ranges)


def counts() -> str:
    """Parameters and MACs of every model, counted now: what ``starshift models`` shows without building them."""
    from starshift.models import list_models
    from starshift.models._counting import measure

    lines = ["name,params,macs,macs_folded"]
    for name in list_models():
        info = measure(name)
        lines.append(f"{name},{info.params},{info.macs},{info.macs_folded}")
    return "\n".join(lines) + "\n"


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
    """Every page that has a table, with its tables made anew; and the models' counts."""
    pages = {ROOT / "src" / "starshift" / "models" / "counts.csv": counts()}
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        if MARKED.search(text):
            pages[path] = MARKED.sub(lambda m: m[1] + TABLES[m[2]]() + m[3], text)
    return pages


if __name__ == "__main__":
    for page, content in rendered().items():
        changed = not page.exists() or page.read_text(encoding="utf-8") != content
        page.write_text(content, encoding="utf-8")
        print(f"{'rendered' if changed else 'fresh   '} {page.relative_to(ROOT)}")
