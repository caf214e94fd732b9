# SPDX-License-Identifier: Apache-2.0
"""Decision boundaries on two moons (Ma et al., "Rewrite the Stars", CVPR 2024, the figure of decision boundaries).

The paper: a 2-D DemoNet with stars draws a boundary like that of an SVM with a polynomial kernel, one with sums draws
another, and an SVM with a Gaussian kernel a third. 100 points, noise 0.4.

    python -m experiments run star_boundaries

Expected: all four within a few points on fresh points; the star's smoother than the Gaussian SVM's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from experiments._book import Claim
from experiments._cells import Cell, Context
from experiments._stats import Row, Spread, as_table, spread

TITLE = "Decision boundaries on two moons"
SOURCE = "Rewrite the Stars, figure of decision boundaries"
SETTING = (
    "100 points of noise 0.4 to train on, 2,000 fresh ones to test on, 10 seeds of points and weights; mean, lowest and"
    " highest. `agrees` is the share of the plane around the moons on which both, fitted to equal points, decide alike."
    " The figure shows seed 0"
)
READING = (
    "The paper shows one picture and says that the star's boundary resembles the polynomial kernel's. Over ten "
    "seeds neither classifier's boundary stays near one kernel: a hundred noisy points leave more room to the seed "
    "than to the kernel. The star fits its training points best and fresh points worst, as its larger space would "
    "have it"
)
COST = {"smoke": "10 s", "small": "1 min", "paper": "1 min"}
NEEDS_DATA = False
NAMES = {
    "star": "DemoNet, star",
    "sum": "DemoNet, sum",
    "svm_rbf": "SVM, Gaussian kernel",
    "svm_poly": "SVM, polynomial kernel",
}


def cells(budget: str) -> list[Cell]:
    return [
        Cell({"classifier": name, "seed": seed}, _measure(name, seed))
        for seed in range(1 if budget == "smoke" else 10)
        for name in NAMES
    ]


def _measure(name: str, seed: int) -> Callable[[Context], dict[str, Any]]:
    def measure(context: Context) -> dict[str, Any]:
        from starshift.analysis import accuracy, decision_grid, fit_classifier, two_moons

        data = two_moons(seed)
        fitted = fit_classifier(name, data, seed)
        side = decision_grid(fitted).score > 0
        agrees = {}
        for svm in ("svm_rbf", "svm_poly"):
            other = decision_grid(fit_classifier(svm, data, seed)).score > 0
            agrees[f"agrees_{svm}"] = round(100 * float((side == other).mean()), 3)
        return {
            "train_top1": round(accuracy(fitted, data.points, data.classes), 3),
            "top1": round(accuracy(fitted, data.test_points, data.test_classes), 3),
            **agrees,
        }

    return measure


def table(rows: list[Row]) -> str:
    def short(found: Spread | None) -> str:
        return "-" if found is None else f"{found.mean:.1f} ({found.low:.1f} to {found.high:.1f})"

    lines = [
        (
            label,
            short(spread(rows, "train_top1", classifier=name)),
            short(spread(rows, classifier=name)),
            short(spread(rows, "agrees_svm_poly", classifier=name)),
            short(spread(rows, "agrees_svm_rbf", classifier=name)),
        )
        for name, label in NAMES.items()
    ]
    header = (
        "classifier",
        "training points, %",
        "fresh points, %",
        "agrees with polynomial SVM, %",
        "with Gaussian SVM, %",
    )
    return as_table(header, lines)


def figure(rows: list[Row]) -> Any:
    """The four boundaries of seed 0, fitted anew: a fit is a function of its seed."""
    from matplotlib import pyplot as plt

    from starshift.analysis import decision_grid, fit_classifier, two_moons

    data = two_moons(0)
    drawn, axes = plt.subplots(1, 4, figsize=(14, 3.4), sharey=True)
    for ax, (name, label) in zip(axes, NAMES.items(), strict=True):
        grid = decision_grid(fit_classifier(name, data, 0))
        ax.contourf(grid.x, grid.y, grid.score > 0, levels=[-0.5, 0.5, 1.5], colors=["#dbeafe", "#ffedd5"])
        ax.contour(grid.x, grid.y, grid.score, levels=[0], colors="black", linewidths=1)
        for number, colour in ((0, "#1d4ed8"), (1, "#c2410c")):
            own = data.points[data.classes == number]
            ax.scatter(own[:, 0], own[:, 1], s=12, color=colour)
        found = spread(rows, classifier=name)
        ax.set_title(f"{label}\n{found.mean:.1f}% of fresh points" if found else label, fontsize=10)
    return drawn


def claims(rows: list[Row]) -> list[Claim]:
    found = {
        (n, k): spread(rows, f"agrees_{k}", classifier=n) for n in ("star", "sum") for k in ("svm_poly", "svm_rbf")
    }
    if not all(found.values()):
        return []
    poly, rbf, other = found["star", "svm_poly"], found["star", "svm_rbf"], found["sum", "svm_poly"]
    assert poly and rbf and other
    ours = f"agrees with it on {poly.mean:.1f}% of the plane, with the Gaussian one on {rbf.mean:.1f}%"
    ours += f"; the sum with the polynomial one on {other.mean:.1f}%"
    nearer = [p - max(r, o) for p, r, o in zip(poly.values, rbf.values, other.values, strict=True)]
    holds = True if min(nearer) > 0 else False if max(nearer) < 0 else None
    return [Claim("the star's boundary is like that of a polynomial kernel", "a figure", ours, holds)]
