# SPDX-License-Identifier: Apache-2.0
"""The star's implicit dimension (Ma et al., "Rewrite the Stars", CVPR 2024, section 3).

The paper: one star layer on d channels spans (d + 1)(d + 2) / 2 monomials; an activation on a branch keeps about d²/2;
``(W1 x) * x`` has about 2d; ``x * x`` has d; l stacked layers reach degree 2^l.

    python -m experiments run star_dimension

Every cell is exact or at the precision of float64: the coefficients alpha(i, j) against the layer itself, the numeric
rank of the features over random points against the count, the degree of stacked layers by finite differences in
rational arithmetic, and the kernel of random stars against the polynomial kernel. Expected: the counts, but for case II
and an activation on a branch, where the algebra says something else than the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from experiments._book import Claim
from experiments._cells import Cell, Context
from experiments._stats import Row, as_table

TITLE = "The implicit dimension, measured"
SOURCE = "Rewrite the Stars, section 3"
SETTING = (
    "Exact, or float64 with Gaussian weights at random points. `rank` is that of the features of one layer with more"
    " channels than the count, singular values above the precision of float64; `degree` that of stacked layers without"
    " activation along a line, by finite differences of rational numbers; `kernel` the mean over random channels of the"
    " product of two points' features, in standard errors off `(<x, y> + 1)²`"
)
COST = {"smoke": "5 s", "small": "2 min", "paper": "2 min"}
NEEDS_DATA = False
INPUTS = {"smoke": (3,), "small": (2, 4, 8, 12, 16, 24), "paper": (2, 4, 8, 12, 16, 24)}
CASES = {
    "star": {},
    "I: ReLU on a branch": {"act": "relu"},
    "I: GELU on a branch": {"act": "gelu"},
    "II: (W x) * x, all channels": {"case": "branch"},
    "II: (W x) * x, one channel": {"case": "branch_channel"},
    "III: x * x": {"case": "square"},
}
PUBLISHED: dict[str, Callable[[int], float]] = {
    "star": lambda d: (d + 1) * (d + 2) / 2,
    "I: ReLU on a branch": lambda d: d * d / 2,
    "I: GELU on a branch": lambda d: d * d / 2,
    "II: (W x) * x, all channels": lambda d: 2 * d,
    "II: (W x) * x, one channel": lambda d: 2 * d,
    "III: x * x": lambda d: d,
}


def cells(budget: str) -> list[Cell]:
    sizes = INPUTS[budget]
    made = [Cell({"what": "coefficients", "case": "star", "inputs": d}, _coefficients(d)) for d in sizes]
    made += [Cell({"what": "rank", "case": case, "inputs": d}, _rank(case, d)) for case in CASES for d in sizes]
    made += [
        Cell({"what": "degree", "case": f"{n} layers", "inputs": 3}, _degree(n))
        for n in range(1, 3 if budget == "smoke" else 7)
    ]
    made += [Cell({"what": "kernel", "case": mode, "inputs": 8}, _kernel(mode)) for mode in ("star", "sum")]
    return made


def _coefficients(inputs: int) -> Callable[[Context], dict[str, Any]]:
    def measure(context: Context) -> dict[str, Any]:
        import torch

        from starshift.analysis import monomial_count, monomials, star_coefficients

        torch.manual_seed(inputs)
        w1, w2 = torch.randn(2, 64, inputs, dtype=torch.float64)
        b1, b2 = torch.randn(2, 64, dtype=torch.float64)
        x = torch.randn(256, inputs, dtype=torch.float64)
        layer = (x @ w1.T + b1) * (x @ w2.T + b2)
        alpha = star_coefficients(w1, b1, w2, b2)
        error = (monomials(x) @ alpha.T - layer).abs().max() / layer.abs().max()
        return {"expected": monomial_count(inputs), "found": alpha.shape[1], "error": float(error)}

    return measure


def _rank(case: str, inputs: int) -> Callable[[Context], dict[str, Any]]:
    def measure(context: Context) -> dict[str, Any]:
        from starshift.analysis import implicit_rank

        found = implicit_rank(inputs, **CASES[case])  # type: ignore[arg-type]
        return {
            "expected": found.expected,
            "found": found.rank,
            "error": found.next,
            "smallest": found.smallest,
            "quadratic_share": found.quadratic_share,
            "effective": found.effective,
        }

    return measure


def _degree(layers: int) -> Callable[[Context], dict[str, Any]]:
    def measure(context: Context) -> dict[str, Any]:
        from starshift.analysis import exact_degree, integer_layers

        found = exact_degree(integer_layers(3, 3, layers), (1, -1, 2), (2, 1, -1))
        return {"expected": 2**layers, "found": max(found), "error": 0.0}

    return measure


def _kernel(mode: str) -> Callable[[Context], dict[str, Any]]:
    def measure(context: Context) -> dict[str, Any]:
        import torch

        from starshift.analysis import estimate_kernel

        torch.manual_seed(0)
        found = estimate_kernel(torch.randn(12, 8), torch.randn(12, 8), channels=1_000_000, mode=mode)
        off = found.deviation.abs()
        return {"expected": 2 if mode == "star" else 1, "found": round(float(off.mean()), 3), "error": float(off.max())}

    return measure


def table(rows: list[Row]) -> str:
    sizes = sorted({int(row["inputs"]) for row in rows if row["what"] == "rank"})
    lines = []
    for case in CASES:
        of = {int(row["inputs"]): row for row in rows if row["what"] == "rank" and row["case"] == case}
        found = [of[d]["found"] if d in of else "-" for d in sizes]
        share = f"{min(float(row['quadratic_share']) for row in of.values()):.4f}" if of else "-"
        lines.append((case, *found, ", ".join(f"{PUBLISHED[case](d):.0f}" for d in sizes), share))
    header = (
        "rank of the features",
        *(f"d = {d}" for d in sizes),
        "paper",
        "least share explained by monomials of degree 2",
    )
    ranks = as_table(header, lines)
    degrees = ", ".join(f"{row['case']}: {row['found']}" for row in rows if row["what"] == "degree")
    errors = [float(row["error"]) for row in rows if row["what"] == "coefficients"]
    kernel = "; ".join(
        f"{row['case']}: {row['found']} standard errors in the mean of 144 pairs, at most {float(row['error']):.1f}"
        for row in rows
        if row["what"] == "kernel"
    )
    exact = f"{max(errors):.0e}" if errors else "-"
    return (
        f"{ranks}\nThe explicit expansion differs from the layer by {exact} of its largest value (float64). Degrees of"
        f" stacked layers: {degrees}. Kernel of a million random channels: {kernel}.\n\n"
    )


def figure(rows: list[Row]) -> Any:
    from matplotlib import pyplot as plt

    drawn, ax = plt.subplots(figsize=(7, 4.5))
    for case in CASES:
        of = sorted((int(r["inputs"]), int(r["found"])) for r in rows if r["what"] == "rank" and r["case"] == case)
        ax.plot([d for d, _ in of], [rank for _, rank in of], "o-", label=case)
    sizes = sorted({int(row["inputs"]) for row in rows if row["what"] == "rank"})
    ax.plot(sizes, [(d + 1) * (d + 2) / 2 for d in sizes], "k--", linewidth=1, label="(d + 1)(d + 2) / 2")
    ax.set(title=TITLE, xlabel="channels d", ylabel="rank of the features", yscale="log")
    ax.legend(fontsize=8)
    ax.grid(alpha=0.3)
    return drawn


def claims(rows: list[Row]) -> list[Claim]:
    def of(what: str, case: str = "") -> list[Row]:
        return [row for row in rows if row["what"] == what and case in row["case"]]

    made = []
    for case, claim in (
        ("star", "one star layer spans (d + 1)(d + 2) / 2 dimensions"),
        ("II: (W x) * x, all channels", "`(W x) * x` has about 2d dimensions"),
        ("III: x * x", "`x * x` has d dimensions"),
    ):
        found = [row for row in of("rank") if row["case"] == case]
        if found:
            last = found[-1]
            paper = PUBLISHED[case](int(last["inputs"]))
            holds = all(float(r["found"]) == PUBLISHED[case](int(r["inputs"])) for r in found)
            made.append(Claim(claim, f"{paper:.0f} at d = {last['inputs']}", f"{last['found']}, exactly", holds))
    found = of("rank", "ReLU")
    if found:
        ours = f"no bound: full rank {found[-1]['found']} at d = {found[-1]['inputs']}"
        made.append(Claim("an activation on a branch leaves the count at about d²/2", "said", ours, False))
    found = of("degree")
    if found:
        holds = all(row["found"] == row["expected"] for row in found)
        ours = ", ".join(row["found"] for row in found)
        made.append(Claim("l stacked star layers are polynomials of degree 2^l", "2, 4, 8, ...", ours, holds))
    return made
