# SPDX-License-Identifier: Apache-2.0
"""StarShift, a family of this library: the star for nonlinearity, the shift for space. Which design, and is it better?

    python -m experiments run starshift_search --data cifar10

Every network gets about the same training time: its speed is measured first, beside that of StarShift (the best of 20
steps each in processor seconds of one thread, so that other work on the machine counts little), and the epochs are the
number of whole ones nearest to the time in which StarShift trains on so many images, at least one. All times are those
of a machine on which StarShift is as fast as is written below, so they are the same on a slower one.
Expected:
shifts where the map is large, depthwise convolutions where it is small and they cost little.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments._book import Claim
from experiments._cells import Cell, Context, as_text, seeds, trained_row
from experiments._settings import STARNET
from experiments._stats import Row, Spread, above, as_table, difference, signed, spread, text, values
from starshift.training.folder import write_json

TITLE = "StarShift beside StarNet, ShiftResNet, ResNet-20 and MobileNet-V3 at equal training time"
SOURCE = "beyond both papers"
SETTING = (
    "CIFAR-10 (JPEG). AdamW on one cycle for all; whole epochs, as many as come nearest to the same time of one thread"
    " (what they come to, at the speed measured, is in the table); the last column is one image's latency, folded, on"
    " one thread. `starshift` rows change one thing each"
)
READING = (
    "Equal time is the judge, so a network that is cheap for each epoch sees more of the data: full resolution, the "
    "residual networks, MobileNet-V3 at half resolution and StarShift's larger sizes, which see the data once or "
    "twice, lose by that, not by what they could learn. The StarNet paper's initialisation is worth two to three "
    "points in so short a training, to StarNet as to StarShift. Among StarShift's designs space matters (without "
    "any in the blocks five points are lost). Shifting twice helps by a point, depthwise convolutions in place of "
    "the shifts of the first two stages by one and a half, in place of all by two, at the same speed, since this "
    "library's depthwise kernels left the shift nothing to save. So shifts alone stay below StarNet, shifts in the "
    "deep stages are level with it, and the form without any shift, which is a small StarNet, is above it in both "
    "repeats. One image takes a little less time than StarNet's, and a third of ShiftResNet's. "
    "`starshift_*` is registered as the best design that has shifts; `space: depthwise` is the other. The shift is "
    "for targets where it is free and a depthwise convolution is not"
)
COST = {"smoke": "20 s", "small": "80 min on 2 cores", "paper": "10 h on 2 cores"}
NEEDS_DATA = True
SECONDS = {"smoke": 0.0, "small": 150.0, "paper": 1500.0}
HALF: Mapping[str, Any] = {"stem_stride": 2}
OFFICIAL: Mapping[str, Any] = {"init": "official"}


def _ours(**changes: Any) -> tuple[str, Mapping[str, Any]]:
    """A design of StarShift: the plainest with some things changed. Nothing is left to the model's defaults, which
    follow from what is found here."""
    return "starshift_s_32px", {"init": "timm", "space": "shift", "twice": False, **changes}


EARLY, LATE = ["depthwise", "depthwise", "shift", "shift"], ["shift", "shift", "depthwise", "depthwise"]
DESIGNS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "starshift": _ours(),
    "starshift, shift twice": _ours(twice=True),
    "starshift, kernel 5": _ours(kernel_size=5),
    "starshift, shifts between stages": _ours(down="shift"),
    "starshift, depthwise in stages 3 and 4": _ours(space=LATE),
    "starshift, depthwise in stages 1 and 2": _ours(space=EARLY),
    "starshift, depthwise everywhere": _ours(space="depthwise"),
    "starshift, no space in blocks": _ours(space="none"),
    "starshift, official initialisation": _ours(**OFFICIAL),
    "starshift, shift twice, official initialisation": _ours(twice=True, **OFFICIAL),
    "starshift, depthwise everywhere, official initialisation": _ours(space="depthwise", **OFFICIAL),
    "starshift, depthwise in stages 1 and 2, official initialisation": _ours(space=EARLY, **OFFICIAL),
    "starshift, full resolution": _ours(stem_stride=1),
    "starnet_s050_32px": ("starnet_s050_32px", HALF),
    "starnet_s050_32px, official initialisation": ("starnet_s050_32px", {**HALF, **OFFICIAL}),
    "starnet_s050_32px, full resolution": ("starnet_s050_32px", {}),
    "shiftresnet20, E=9": ("shiftresnet20", {"expansion": 9}),
    "resnet20": ("resnet20", {}),
    "mobilenetv3_small_050": ("mobilenetv3_small_050", {}),
    "mobilenetv3_small_050, half resolution": ("mobilenetv3_small_050_32px", {}),
    "starshift_m": ("starshift_m_32px", {}),
    "starshift_l": ("starshift_l_32px", {}),
}
SMOKE = ("starshift", "starnet_s050_32px, full resolution")
BATCH = 128
REFERENCE = DESIGNS["starshift"]
REFERENCE_IMAGES_PER_S, REFERENCE_LATENCY_MS = 1744.0, 0.58
"""What speeds are told by: those of :data:`REFERENCE` on the machine that ``SECONDS`` are meant for. Each network is
timed beside it, so that a machine that is slower, or busy, gives the same numbers."""


def cells(budget: str) -> list[Cell]:
    chosen = SMOKE if budget == "smoke" else DESIGNS
    return [_cell(budget, name, seed) for seed in seeds(budget) for name in chosen]


def _cell(budget: str, name: str, seed: int) -> Cell:
    model, args = DESIGNS[name]
    if budget == "smoke":
        args = {**args, "stem_stride": 1}
    settings = {**STARNET, "model_args": dict(args), "seed": seed}
    kept = {"model": model, "seconds": SECONDS[budget], **settings}
    return Cell({"design": name, "seed": seed}, _measure(model, settings, SECONDS[budget]), kept)


def _measure(model: str, settings: Mapping[str, Any], seconds: float) -> Callable[[Context], dict[str, Any]]:
    def measure(context: Context) -> dict[str, Any]:
        from experiments import _peers  # noqa: F401  timm knows them by name from here on

        speed, latency = _speed(context.runs, model, settings["model_args"])
        epochs = max(1, round(seconds * speed / 50_000))
        found = trained_row(context.train(model, {**settings, "epochs": epochs}))
        return {"cpu_images_per_s": round(speed, 1), "latency_ms": round(latency, 3), **found}

    return measure


def _speed(runs: Path, model: str, args: Mapping[str, Any]) -> tuple[float, float]:
    """Images trained on in a second of one thread's processor time, and milliseconds of one image's answer, where
    :data:`REFERENCE` needs what is written beside it.

    Measured once and noted beside the trained networks, so that repeats get the same number of epochs. Cells side by
    side wait for each other here.
    """
    from filelock import FileLock

    noted = runs / "speeds.json"
    runs.mkdir(parents=True, exist_ok=True)
    with FileLock(noted.with_suffix(".lock")):
        known = json.loads(noted.read_text(encoding="utf-8")) if noted.is_file() else {}
        name = f"{model} {as_text(args)}"
        if name not in known:
            (speed, latency), (its_speed, its_latency) = _timed(model, args), _timed(*REFERENCE)
            known[name] = speed / its_speed, latency / its_latency
            write_json(noted, known)
    speed, latency = known[name]
    return speed * REFERENCE_IMAGES_PER_S, latency * REFERENCE_LATENCY_MS


def _timed(model: str, args: Mapping[str, Any]) -> tuple[float, float]:
    import statistics
    import time

    import torch

    from starshift.layers import fold_batchnorm
    from starshift.models import create_model

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        network = create_model(model, num_classes=10, **args).to(memory_format=torch.channels_last)
        images = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
        targets = torch.arange(BATCH) % 10
        optimiser = torch.optim.AdamW(network.parameters())

        def step() -> None:
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(network(images), targets).backward()
            optimiser.step()

        training = _seconds(step, 20, time.process_time)
        folded = fold_batchnorm(network)
        with torch.inference_mode(False), torch.no_grad():
            one = _seconds(lambda: folded(images[:1]), 50, time.process_time)
        return BATCH / min(training), 1e3 * statistics.median(one)
    finally:
        torch.set_num_threads(threads)


def _seconds(work: Callable[[], Any], times: int, clock: Callable[[], float]) -> list[float]:
    """Of each call after two that do not count."""
    found = []
    for i in range(times + 2):
        start = clock()
        work()
        if i > 1:
            found.append(clock() - start)
    return found


def table(rows: list[Row]) -> str:
    lines = []
    for name in values(rows, "design"):
        of = [row for row in rows if row["design"] == name]
        lines.append(
            (
                name,
                f"{int(of[0]['params']) / 1e3:,.0f}k",
                f"{int(of[0]['macs']) / 1e6:.1f}M",
                text(spread(of, "cpu_images_per_s"), 0),
                ", ".join(values(of, "epochs")),
                text(Spread(tuple(int(r["epochs"]) * 50e3 / float(r["cpu_images_per_s"]) for r in of)), 0),
                text(spread(of)),
                text(spread(of, "latency_ms"), 2),
            )
        )
    header = (
        "design",
        "parameters",
        "MACs",
        "training, images/s of one thread",
        "epochs",
        "seconds",
        "top-1 %",
        "latency, ms",
    )
    return as_table(header, lines)


def figure(rows: list[Row]) -> Any:
    from matplotlib import pyplot as plt

    drawn, ax = plt.subplots(figsize=(8, 5))
    for name in values(rows, "design"):
        of = [row for row in rows if row["design"] == name]
        found, latency = spread(of), spread(of, "latency_ms")
        if found and latency:
            colour = "#c2410c" if name.startswith("starshift") else "#1d4ed8"
            ax.errorbar(
                latency.mean, found.mean, [[found.mean - found.low], [found.high - found.mean]], fmt="o", color=colour
            )
            ax.annotate(name, (latency.mean, found.mean), textcoords="offset points", xytext=(5, 4), fontsize=7)
    ax.set(title="Accuracy at equal training time against latency", xlabel="one image, ms", ylabel="top-1 %")
    ax.grid(alpha=0.3)
    return drawn


def claims(rows: list[Row]) -> list[Claim]:
    star, wide, official = "starnet_s050_32px", "starshift, depthwise everywhere", ", official initialisation"
    early, mobile = "starshift, depthwise in stages 1 and 2", "mobilenetv3_small_050, half resolution"
    asked = [
        *(("starshift", peer) for peer in (star, mobile, "shiftresnet20, E=9", "resnet20")),
        *((ours, star) for ours in (early, wide)),
        *((name + official, name) for name in ("starshift", wide, star)),
        *((ours + official, star + official) for ours in ("starshift", early, wide)),
    ]
    made = []
    for ours, peer in asked:
        gap = difference(rows, {"design": ours}, {"design": peer})
        if gap is not None:
            name = ours.replace("starshift", "StarShift")
            made.append(Claim(f"{name} is above {peer} at about equal training time", "-", signed(gap), above(gap)))
    return made
