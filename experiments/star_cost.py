# SPDX-License-Identifier: Apache-2.0
"""What the product costs (Ma et al., "Rewrite the Stars", CVPR 2024: star brings its features at no extra cost).

    python -m experiments run star_cost

The blocks of StarNet-S1's stages with star and with sum, in timm's plain PyTorch and with this library's kernels:
inference, forward and backward of training, each timed by itself, and what forward keeps for backward. Rounds are
paired: in each one star and sum run in turns, and who goes first alternates.

A verdict on time rests on the median over rounds of star / sum and its interval of 99%, by order statistics (the sign
test, which assumes no distribution; with fewer than 8 rounds the lowest and highest round): the claim holds if the
interval ends within the bound in every stage, it does not if in some stage it begins above, else we cannot tell.
Single rounds spread much wider than their median is uncertain; the rows have the lowest and highest too. A verdict on
memory needs no interval: it does not hold if all stages are above the bound, it holds if none is.

Expected: nearly equal in plain PyTorch, as both read two tensors and write one; the product keeps both factors for
backward, which the sum need not. The kernels fuse the star alone, so there it is the cheaper one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from math import comb
from typing import Any

from experiments._book import Claim
from experiments._cells import Cell, Context
from experiments._stats import Row, Spread, as_table, below, every, values

TITLE = "Star against sum in time and memory"
SOURCE = "Rewrite the Stars, section 3"
SETTING = (
    "Batch 32, fp32, channels last, 2 threads; median of paired rounds and its interval of 99%. `plain` is timm's block"
    " in eager PyTorch, `kernels` this library's, whose fused kernel knows the star only. Forward is that of training,"
    " with all that it keeps. Above 1, the star takes longer"
)
READING = (
    "Forward the product costs what the sum costs, as the paper says. Training it costs 4 to 7 % more in plain PyTorch,"
    " all of it in backward, since both factors must be kept and read again: two thirds more memory. The fused kernel "
    "makes the branches anew, keeps neither, and takes half to four fifths of the sum's time in inference"
)
COST = {"smoke": "5 s", "small": "2 min on 2 cores", "paper": "2 min on 2 cores"}
NEEDS_DATA = False
BLOCKS = {"stage 1": (24, 56), "stage 2": (48, 28), "stage 3": (96, 14), "stage 4": (192, 7)}
"""Channels and side of the square input."""
BOUND = 1.05
PARTS = {
    "inference": ("inference", ""),
    "forward": ("training", "forward_"),
    "backward": ("training", "backward_"),
    "forward + backward": ("training", ""),
}
"""What is timed: the row's ``pass`` and the prefix of its columns."""


def cells(budget: str) -> list[Cell]:
    """The number of threads is a setting, and set by the measurement: a row means the same wherever it is read."""
    chosen = ("stage 4",) if budget == "smoke" else BLOCKS
    settings = {"rounds": 2, "threads": 1} if budget == "smoke" else {"rounds": 61, "threads": 2}
    return [
        Cell(
            {"block": block, "kernels": kernels, "pass": which},
            _measure(*BLOCKS[block], kernels == "kernels", which == "training", **settings),
            settings,
        )
        for block in chosen
        for kernels in ("plain", "kernels")
        for which in ("inference", "training")
    ]


def _measure(
    channels: int, side: int, kernels: bool, training: bool, rounds: int, threads: int
) -> Callable[[Context], dict[str, Any]]:
    def measure(context: Context) -> dict[str, Any]:
        import torch

        from starshift.training.machine import keep_freed_memory

        keep_freed_memory()
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            last = torch.channels_last
            x = torch.randn(32, channels, side, side).to(memory_format=last).requires_grad_(training)
            star, total = (
                _block(channels, mode, kernels).to(memory_format=last).train(training) for mode in ("star", "sum")
            )
            found = (_time_training if training else _time_inference)(star, total, x, rounds)
            if training:
                found |= {"star_kept_mb": _kept(star, x), "sum_kept_mb": _kept(total, x)}
            return {**found, "threads": torch.get_num_threads()}
        finally:
            torch.set_num_threads(before)

    return measure


def _block(channels: int, mode: str, kernels: bool) -> Any:
    from timm.models.starnet import Block

    from starshift.layers import StarBlock

    if kernels:
        return StarBlock(channels, mode=mode)

    class Sum(Block):
        def forward(self, x: Any) -> Any:
            y = self.dwconv(x)
            y = self.dwconv2(self.g(self.act(self.f1(y)) + self.f2(y)))
            return x + self.drop_path(y)

    return Block(channels, mlp_ratio=4) if mode == "star" else Sum(channels, mlp_ratio=4)


def _time_inference(star: Any, total: Any, x: Any, rounds: int) -> dict[str, float]:
    import torch

    from starshift.bench.clock import paired

    with torch.no_grad():
        found = paired(lambda: star(x), lambda: total(x), rounds)
    return _columns("", found.ours, found.peer)


def _time_training(star: Any, total: Any, x: Any, rounds: int) -> dict[str, float]:
    """Forward, backward and, without a prefix, both together."""
    import torch

    from starshift.bench.clock import paired

    gradient = torch.randn_like(x)
    stars: list[tuple[float, float]] = []
    sums: list[tuple[float, float]] = []
    paired(lambda: stars.append(_step(star, x, gradient)), lambda: sums.append(_step(total, x, gradient)), rounds)
    del stars[0], sums[0]  # the round that does not count
    return {
        **_columns("", [f + b for f, b in stars], [f + b for f, b in sums]),
        **_columns("forward_", [f for f, _ in stars], [f for f, _ in sums]),
        **_columns("backward_", [b for _, b in stars], [b for _, b in sums]),
    }


def _step(block: Any, x: Any, gradient: Any) -> tuple[float, float]:
    """Seconds of forward, which keeps the graph, and of backward through it. x and the gradient: (N, C, H, W)."""
    block.zero_grad(set_to_none=True)
    x.grad = None
    start = time.perf_counter()
    y = block(x)
    middle = time.perf_counter()
    y.backward(gradient)
    return middle - start, time.perf_counter() - middle


def _columns(prefix: str, star: Sequence[float], total: Sequence[float]) -> dict[str, float]:
    """Of seconds for each round: medians in ms; the ratios' median, its interval, the lowest and the highest."""
    ratios = sorted(a / b for a, b in zip(star, total, strict=True))
    low, high = _median_interval(ratios)
    found = {
        "star_ms": 1e3 * statistics.median(star),
        "sum_ms": 1e3 * statistics.median(total),
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[0],
        "ratio_high": ratios[-1],
        "median_low": low,
        "median_high": high,
    }
    return {f"{prefix}{name}": round(value, 3) for name, value in found.items()}


def _median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """Where the true median lies with a probability of at least 99%. A value lies below it like a coin's toss; left out
    at each end are as many values as n tosses fall short of with at most 0.5%. Below 8 values: the first and last."""
    n = len(ordered)
    out = max((k for k in range(n // 2) if 200 * sum(comb(n, i) for i in range(k + 1)) <= 2**n), default=0)
    return ordered[out], ordered[-1 - out]


def _kept(block: Any, x: Any) -> float:
    """MB that forward keeps for backward, each storage once, parameters and input left out."""
    import torch

    known = {t.untyped_storage().data_ptr() for t in (x, *block.parameters())}
    kept: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = block(x)
    del y
    return round(sum(kept.values()) / 2**20, 2)


def table(rows: list[Row]) -> str:
    lines = []
    for block in values(rows, "block"):
        for kernels in values(rows, "kernels"):
            of = {row["pass"]: row for row in rows if (row["block"], row["kernels"]) == (block, kernels)}
            times = [_text(of.get(which), prefix) for which, prefix in PARTS.values()]
            kept = f"{of['training']['star_kept_mb']} / {of['training']['sum_kept_mb']}" if "training" in of else "-"
            lines.append((f"{block} ({'×'.join(str(n) for n in BLOCKS[block])})", kernels, *times, kept))
    header = (
        "block (C×side)",
        "run by",
        *(f"{part}: star / sum" for part in PARTS),
        "kept for backward, MB: star / sum",
    )
    return as_table(header, lines)


def _text(row: Row | None, prefix: str) -> str:
    """``23 / 23 ms, 1.01 (0.99 to 1.03)``."""
    if row is None:
        return "-"
    star, total = (f"{float(row[f'{prefix}{mode}_ms']):.1f}" for mode in ("star", "sum"))
    return f"{star} / {total} ms, {_ratio(row, prefix)}"


def _ratio(row: Row, prefix: str = "") -> str:
    ratio, low, high = (f"{float(row[prefix + name]):.2f}" for name in ("ratio", "median_low", "median_high"))
    return f"{ratio} ({low} to {high})"


def figure(rows: list[Row]) -> Any:
    from matplotlib import pyplot as plt

    drawn, axes = plt.subplots(1, 2, figsize=(10, 4.5), sharey=True)
    parts, blocks = list(PARTS)[:3], values(rows, "block")
    for ax, (kernels, name) in zip(axes, {"plain": "plain PyTorch", "kernels": "kernels"}.items(), strict=True):
        for i, part in enumerate(parts):
            which, prefix = PARTS[part]
            of = {row["block"]: row for row in rows if (row["kernels"], row["pass"]) == (kernels, which)}
            at = [n + 0.27 * (i - 1) for n, block in enumerate(blocks) if block in of]
            ratio, low, high = (
                [float(of[block][prefix + column]) for block in blocks if block in of]
                for column in ("ratio", "median_low", "median_high")
            )
            error = [
                [r - n for r, n in zip(ratio, low, strict=True)],
                [n - r for r, n in zip(ratio, high, strict=True)],
            ]
            ax.bar(at, ratio, 0.25, yerr=error, capsize=2, label=part)
        ax.axhline(1, color="black", linestyle="--", linewidth=1)
        ax.set(title=name, xticks=range(len(blocks)), xticklabels=blocks)
        ax.grid(alpha=0.3, axis="y")
    axes[0].set(ylabel="time of star / time of sum")
    axes[0].legend(fontsize=8, loc="lower right")
    drawn.suptitle(TITLE)
    return drawn


def claims(rows: list[Row]) -> list[Claim]:
    """Of plain PyTorch; this file's text has the rules."""
    plain = [row for row in rows if row["kernels"] == "plain"]
    made = []
    for which, name in (("inference", "inference"), ("training", "a training step, forward + backward")):
        found = {row["block"]: row for row in plain if row["pass"] == which}
        if found:
            holds = every(
                below(Spread((float(row["median_low"]), float(row["median_high"]))), BOUND) for row in found.values()
            )
            ours = ", ".join(f"{_ratio(row)} in {block}" for block, row in found.items())
            claim = f"the product takes no more time than the sum in {name} (plain PyTorch, within 5%)"
            made.append(Claim(claim, "said", f"star / sum {ours}", holds))
    return [*made, *_memory_claim([row for row in plain if row["pass"] == "training"])]


def _memory_claim(rows: list[Row]) -> list[Claim]:
    if not rows:
        return []
    ratios: Mapping[str, float] = {r["block"]: float(r["star_kept_mb"]) / float(r["sum_kept_mb"]) for r in rows}
    over = [ratio > BOUND for ratio in ratios.values()]
    holds = False if all(over) else None if any(over) else True
    ours = ", ".join(f"{ratio:.2f} in {block}" for block, ratio in ratios.items())
    claim = "the product keeps no more memory for backward than the sum (plain PyTorch, within 5%)"
    return [Claim(claim, "said", f"star / sum {ours}", holds)]
