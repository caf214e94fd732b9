# SPDX-License-Identifier: Apache-2.0
"""What the product costs (Ma et al., "Rewrite the Stars", CVPR 2024: star brings its features at no extra cost).

    python -m experiments run star_cost

The blocks of StarNet-S1's stages, inference and training step, with star and with sum, in timm's plain PyTorch and
with this library's kernels: time as the median of paired rounds, and what forward keeps for backward. Expected: nearly
equal in plain PyTorch, as both read two tensors and write one; the product keeps both factors for backward, which the
sum need not. The kernels fuse the star alone, so there it is the cheaper one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from experiments._book import Claim
from experiments._cells import Cell, Context
from experiments._stats import Row, as_table

TITLE = "Star against sum in time and memory"
SOURCE = "Rewrite the Stars, section 3"
SETTING = (
    "Batch 32, fp32, channels last; median of paired rounds, lowest to highest. `plain` is timm's block in eager"
    " PyTorch, `kernels` this library's, whose fused kernel knows the star only. Above 1, the star takes longer"
)
COST = {"smoke": "5 s", "small": "1 min on 2 cores", "paper": "1 min"}
NEEDS_DATA = False
BLOCKS = {"stage 1": (24, 56), "stage 2": (48, 28), "stage 3": (96, 14), "stage 4": (192, 7)}


def cells(budget: str) -> list[Cell]:
    chosen = ("stage 4",) if budget == "smoke" else BLOCKS
    rounds = 2 if budget == "smoke" else 15
    return [
        Cell(
            {"block": block, "kernels": kernels, "pass": which},
            _measure(*BLOCKS[block], kernels == "kernels", which == "training", rounds),
            {"rounds": rounds},
        )
        for block in chosen
        for kernels in ("plain", "kernels")
        for which in ("inference", "training")
    ]


def _measure(
    channels: int, side: int, kernels: bool, training: bool, rounds: int
) -> Callable[[Context], dict[str, Any]]:
    def measure(context: Context) -> dict[str, Any]:
        import torch

        from starshift.bench.clock import paired
        from starshift.training.machine import keep_freed_memory

        keep_freed_memory()
        last = torch.channels_last
        x = torch.randn(32, channels, side, side).to(memory_format=last).requires_grad_(training)
        star, total = (
            _block(channels, mode, kernels).to(memory_format=last).train(training) for mode in ("star", "sum")
        )
        found = paired(lambda: _step(star, x), lambda: _step(total, x), rounds)
        kept = {f"{mode}_kept_mb": _kept(block, x) for mode, block in (("star", star), ("sum", total)) if training}
        ratios = sorted(1 / ratio for ratio in found.ratios)  # the clock's are how many times faster the star is
        times = {"star_ms": round(found.ours_s * 1e3, 3), "sum_ms": round(found.peer_s * 1e3, 3)}
        spread = {"ratio": 1 / found.ratio, "ratio_low": ratios[0], "ratio_high": ratios[-1]}
        return {**times, **{name: round(value, 3) for name, value in spread.items()}, **kept}

    return measure


def _block(channels: int, mode: str, kernels: bool) -> Any:
    from timm.models.starnet import Block

    from starshift.layers import StarBlock

    if kernels:
        return StarBlock(channels, mode=mode)

    class Sum(Block):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            y = self.dwconv(x)
            y = self.dwconv2(self.g(self.act(self.f1(y)) + self.f2(y)))
            return x + self.drop_path(y)

    return Block(channels, mlp_ratio=4) if mode == "star" else Sum(channels, mlp_ratio=4)


def _step(block: Any, x: Any) -> None:
    import torch

    with torch.set_grad_enabled(x.requires_grad):
        y = block(x)
    if x.requires_grad:
        y.sum().backward()


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
    lines = [
        (
            f"{row['block']} ({'×'.join(str(n) for n in BLOCKS[row['block']])})",
            row["kernels"],
            row["pass"],
            row["star_ms"],
            row["sum_ms"],
            f"{float(row['ratio']):.2f} ({float(row['ratio_low']):.2f} to {float(row['ratio_high']):.2f})",
            f"{row['star_kept_mb']} / {row['sum_kept_mb']}" if row.get("star_kept_mb") else "-",
        )
        for row in rows
    ]
    header = (
        "block (C×side)",
        "run by",
        "pass",
        "star, ms",
        "sum, ms",
        "star / sum",
        "kept for backward, MB: star / sum",
    )
    return as_table(header, lines)


def claims(rows: list[Row]) -> list[Claim]:
    plain = [row for row in rows if row["kernels"] == "plain"]
    if not plain:
        return []
    ratios = {
        which: [float(row["ratio"]) for row in plain if row["pass"] == which] for which in ("inference", "training")
    }
    ours = "; ".join(f"{which} {min(r):.2f} to {max(r):.2f} times the sum" for which, r in ratios.items() if r)
    dearest = max(max(r) for r in ratios.values() if r)
    holds = True if dearest < 1.05 else False if min(min(r) for r in ratios.values() if r) > 1.05 else None
    return [Claim("the product costs no more time than the sum (plain PyTorch, within 5%)", "said", ours, holds)]
