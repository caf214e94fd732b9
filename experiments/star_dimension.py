# SPDX-License-Identifier: Apache-2.0
"""The star's implicit dimension (Ma et al., "Rewrite the Stars", CVPR 2024, section 3).

The paper: one star layer on d channels spans (d + 1)(d + 2) / 2 monomials; an activation on a branch keeps about d²/2;
``(W1 x) * x`` has about 2d; ``x * x`` has d; l stacked layers reach degree 2^l and (d / sqrt 2)^(2^l) dimensions.

    python -m experiments run star_dimension

Every cell is exact or at the precision of float64: the coefficients alpha(i, j) against the layer itself, the numeric
rank of the features over random points against the count, of one layer and of stacked ones, the degree of stacked
layers by finite differences in rational arithmetic, and the kernel of random stars against the polynomial kernel.

Verdicts: a count holds if it is met exactly at every d; with an activation and for stacked layers, where the paper's is
rough, if within 10% at every d (with an activation, of anything from d²/2 to the exact count of one layer, as the two
are far apart at small d). The expansion holds to 1e-10. The kernel holds if no pair is above 4 standard errors and the
mean over pairs is within 30% of 0.80, which a standard normal has; the pairs share their draws, so that the mean itself
scatters by about a tenth from seed to seed.

Expected: the counts, but for case II, an activation on a branch and stacked layers, where the algebra says something
else than the paper: l layers have at most C(d + 2^l, d) monomials.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt
from typing import Any

from experiments._book import Claim
from experiments._cells import Cell, Context
from experiments._stats import Row, as_table

TITLE = "The implicit dimension, measured"
SOURCE = "Rewrite the Stars, section 3"
SETTING = (
    "Exact, or float64 with Gaussian weights at random points. `rank` is that of the features of one layer with more"
    " channels than the count, singular values above the precision of float64; with stacked layers, hidden ones are as"
    " wide as the last; `degree` that of stacked layers without activation along a line, by finite differences of"
    " rational numbers; `kernel` the mean over random channels of the product of two points' features, in standard"
    " errors off `(<x, y> + 1)²` for the star and `2 (<x, y> + 1)` for the sum"
)
COST = {"smoke": "5 s", "small": "2 min", "paper": "2 min"}
NEEDS_DATA = False
INPUTS = {"smoke": (3,), "small": (2, 4, 8, 12, 16, 24), "paper": (2, 4, 8, 12, 16, 24)}
STACKED = {
    "smoke": ((2, 3),),
    "small": ((2, 2), (2, 4), (2, 8), (3, 2), (3, 3), (3, 4)),
    "paper": ((2, 2), (2, 4), (2, 8), (3, 2), (3, 3), (3, 4)),
}
"""Layers and inputs d."""
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
NORMAL = sqrt(2 / pi)
"""Mean absolute value of a standard normal, 0.80."""


def cells(budget: str) -> list[Cell]:
    sizes = INPUTS[budget]
    made = [Cell({"what": "coefficients", "case": "star", "inputs": d}, _coefficients(d)) for d in sizes]
    made += [Cell({"what": "rank", "case": case, "inputs": d}, _rank(case, d)) for case in CASES for d in sizes]
    made += [
        Cell({"what": "stacked", "case": f"{layers} layers", "inputs": d}, _rank("star", d, layers))
        for layers, d in STACKED[budget]
    ]
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


def _rank(case: str, inputs: int, layers: int = 1) -> Callable[[Context], dict[str, Any]]:
    def measure(context: Context) -> dict[str, Any]:
        from starshift.analysis import implicit_rank

        found = implicit_rank(inputs, layers=layers, **CASES[case])  # type: ignore[arg-type]
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
    ranks = as_table(header, lines) + _stacked_table([row for row in rows if row["what"] == "stacked"])
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
        f" stacked layers: {degrees}. Kernel of a million random channels: {kernel}.\n"
    )


def _stacked_table(rows: list[Row]) -> str:
    if not rows:
        return ""
    lines = [
        (row["case"], row["inputs"], row["found"], row["expected"], f"{_published_stacked(row):.0f}") for row in rows
    ]
    return "\n" + as_table(("stacked", "d", "rank of the features", "C(d + 2^l, d)", "paper, (d / √2)^(2^l)"), lines)


def _published_stacked(row: Row) -> float:
    from starshift.analysis import published_stacked_log10

    return float(10 ** published_stacked_log10(int(row["inputs"]), int(row["case"].split()[0])))


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
    made += [*_activation_claim([r for r in of("rank") if r["case"].startswith("I: ")]), *_stacked_claim(of("stacked"))]
    found = of("degree")
    if found:
        holds = all(row["found"] == row["expected"] for row in found)
        ours = ", ".join(row["found"] for row in found)
        made.append(Claim("l stacked star layers are polynomials of degree 2^l", "2, 4, 8, ...", ours, holds))
    found = of("coefficients")
    if found:
        error = max(float(row["error"]) for row in found)
        ours = f"differs by at most {error:.0e} of the layer's largest value"
        made.append(Claim("a star layer equals its explicit expansion in monomials", "derived", ours, error <= 1e-10))
    return [*made, *_kernel_claim(of("kernel", "star"))]


def _activation_claim(rows: list[Row]) -> list[Claim]:
    if not rows:
        return []
    d = max(int(row["inputs"]) for row in rows)
    holds = all(
        0.9 * PUBLISHED[row["case"]](int(row["inputs"])) <= float(row["found"])
        and float(row["found"]) <= 1.1 * PUBLISHED["star"](int(row["inputs"]))
        for row in rows
    )
    last = [row for row in rows if int(row["inputs"]) == d]
    ranks = ", ".join(f"{row['found']} of {row['expected']} channels with {row['case'].split()[1]}" for row in last)
    share = min(float(row["quadratic_share"]) for row in rows)
    ours = f"{ranks} at d = {d}; monomials of degree 2 explain {share:.1%} of the energy at least"
    published = f"{PUBLISHED[last[0]['case']](d):.0f} at d = {d}"
    return [Claim("an activation on a branch leaves the count at about d²/2", published, ours, holds)]


def _stacked_claim(rows: list[Row]) -> list[Claim]:
    if not rows:
        return []
    pairs = [(float(row["found"]), _published_stacked(row)) for row in rows]
    holds = all(abs(found - paper) <= 0.1 * paper for found, paper in pairs)
    exact = all(row["found"] == row["expected"] for row in rows)
    ours = ", ".join(f"{row['found']} at l = {row['case'].split()[0]}, d = {row['inputs']}" for row in rows)
    ours += ": C(d + 2^l, d)" if exact else ""
    published = ", ".join(f"{paper:.0f}" for _, paper in pairs)
    return [Claim("l stacked star layers span about (d / √2)^(2^l) dimensions", published, ours, holds)]


def _kernel_claim(rows: list[Row]) -> list[Claim]:
    if not rows:
        return []
    mean, most = (float(rows[0][column]) for column in ("found", "error"))
    holds = abs(mean - NORMAL) <= 0.3 * NORMAL and most <= 4
    ours = f"{mean:.2f} standard errors off in the mean of pairs (chance: {NORMAL:.2f}), at most {most:.1f}"
    return [Claim("the kernel of random star features is `(<x, y> + 1)²`, polynomial of degree 2", "said", ours, holds)]
