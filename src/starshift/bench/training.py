# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of whole networks, training and inference, beside timm's own and torch.compile in the same run."""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from starshift.bench.ceiling import ceiling, require_device
from starshift.bench.rows import provenance
from starshift.bench.sides import (
    ARGUMENTS,
    DEPTHWISE,
    GRAPH,
    OURS,
    OURS_FOLDED,
    PEERS,
    REFERENCE_SHIFTS,
    RUNTIME,
    SHIFT_PEERS,
    Side,
    Spec,
)
from starshift.errors import StarshiftError, nearest

MODELS = ("starnet_s1", "starnet_s4", "shiftresnet20")
TOO_SLOW = 3.0  # times the best peer: one step tells enough
AMP = ("none", "bf16")
Say = Callable[[str], None]


def bench_training(
    models: Sequence[str] = (),
    *,
    batch: int | None = None,
    size: int | None = None,
    threads: int | None = None,
    amp: str = "none",
    modes: Sequence[str] = (),
    rounds: int = 7,
    device: str = "cpu",
    say: Say = lambda text: None,
) -> Iterator[dict[str, Any]]:
    """Time training steps (forward, cross-entropy, backward, fused AdamW) of our networks and their peers in turns.

    Yields a row for ours and for each peer when a model's are measured: images a second, ``ratio`` (median over rounds
    of its seconds by ours), the memory that a step needs at its peak beyond what was in use before the network was
    built. Each side is a process of its own. A peer whose first step takes three times the best peer's is not timed
    further.

    Args:
        models: names; default :data:`MODELS`. One of timm's is run by :func:`starshift.accelerate`.
        batch, size: images a step and their side in pixels; default 32 and 224, for ShiftResNet 128 and 32.
        threads: of each side; default: torch's own number.
        amp: ``none`` (float32) or ``bf16`` (autocast), for both sides.
        modes: which peers; default: all of :data:`PEERS`, for ShiftNets :data:`SHIFT_PEERS`; on a GPU each also with
            its step as one CUDA graph. Ours is then measured both ways, and ratios are to the graph.
        rounds: steps of each side; medians are reported.
        device: ``cpu`` or ``cuda``.
        say: called with a line of progress.

    Raises:
        StarshiftError: an unknown model, mode or amp, a device that is not here; or our own side failed.
    """
    require_device(device)
    if amp not in AMP:
        raise StarshiftError(f"amp is one of {', '.join(AMP)}, not '{amp}'")
    for model in models or MODELS:
        peers = _chosen(modes, _peers_of(model, device))
        small = _is_small(model)
        options: dict[str, Any] = {
            "batch": batch or (128 if small else 32),
            "size": size or (32 if small else 224),
            "threads": threads or _threads(),
            "amp": amp,
            "device": device,
        }
        macs = _macs(model, options["size"])
        multiplied = torch.bfloat16 if amp == "bf16" else torch.float32
        # Before the sides start, which may still be busy with their end when they are done.
        peak = round(ceiling(options["threads"], multiplied).gflops, 1) if device == "cpu" else ""
        ours = (OURS,) if device == "cpu" else (OURS + GRAPH, OURS)
        sides = [Side(Spec(model, mode, **options)) for mode in (*ours, *peers)]
        for side in _take_turns(sides, rounds, say):
            yield {**_common("training", side, sides[0], rounds), **_training_columns(side, macs, peak), **provenance()}


def bench_inference(
    models: Sequence[str] = (),
    *,
    batch: int = 1,
    size: int | None = None,
    threads: int | None = None,
    modes: Sequence[str] = (),
    rounds: int = 15,
    say: Say = lambda text: None,
) -> Iterator[dict[str, Any]]:
    """Time the answer to ``batch`` images in eval mode: ours (eager; and with batch norms folded), timm's in channels
    last, and the exported file in ONNX Runtime. Arguments and rows as :func:`bench_training`.

    Raises:
        StarshiftError: an unknown model or mode; or our own side failed.
    """
    for model in models or MODELS[:1]:
        network = PEERS[0] if _is_timms(model) else REFERENCE_SHIFTS
        others = _chosen(modes, (OURS_FOLDED, network, RUNTIME))
        side_of = size or (32 if _is_small(model) else 224)
        sides = [
            Side(Spec(model, mode, batch, side_of, threads or _threads(), inference=True)) for mode in (OURS, *others)
        ]
        for side in _take_turns(sides, rounds, say):
            common = _common("inference", side, sides[0], rounds)
            yield {**common, "latency_ms": _milliseconds(side), "note": side.note, **provenance()}


def _take_turns(sides: list[Side], rounds: int, say: Say) -> list[Side]:
    """Start all, then let each take ``rounds`` steps, the order turned round each time."""
    ours, *others = sides
    best = math.inf
    started: list[Side] = []
    try:
        for side in sides:
            say(f"{side.spec.model}, {side.spec.mode}: first step")
            side.start()
            started.append(side)
            if side.running:
                seconds = side.step()
                if side is not ours and side.spec.device == "cpu" and seconds > TOO_SLOW * best:
                    side.note = f"one step only: over {TOO_SLOW:g} times the best peer"
                    side.end()
                elif side is not ours:
                    best = min(best, seconds)
        if ours.note:
            raise StarshiftError(f"{ours.spec.model} cannot be measured: {ours.note}")
        for number in range(1, rounds):
            say(f"{ours.spec.model}: round {number + 1} of {rounds}")
            for side in sides if number % 2 else reversed(sides):
                if side.running:
                    side.step()
    finally:
        for side in started:
            side.end()
    for side in others:
        if side.note:
            say(f"{side.spec.model}, {side.spec.mode}: {side.note}")
    return sides


def _common(suite: str, side: Side, ours: Side, rounds: int) -> dict[str, Any]:
    from starshift.ops import _native

    spec = side.spec
    ratios = [theirs / mine for theirs, mine in zip(side.times, ours.times, strict=False)]
    return {
        "suite": suite,
        "run": _STARTED,
        "model": spec.model,
        "arguments": " ".join(f"{k}={v}" for k, v in ARGUMENTS.get(spec.model, {}).items()),
        "batch": spec.batch,
        "size": spec.size,
        "threads": spec.threads,
        "device": spec.device,
        "kernels": "triton" if spec.device == "cuda" else _native.instruction_set() or "none",
        "mode": spec.mode,
        "rounds": len(side.times),
        "ratio": round(statistics.median(ratios), 3) if ratios else "",
        "ratio_low": round(min(ratios), 3) if ratios else "",
        "ratio_high": round(max(ratios), 3) if ratios else "",
    }


def _training_columns(side: Side, macs: int, peak: float | str) -> dict[str, Any]:
    spec = side.spec
    seconds = statistics.median(side.times) if side.times else None
    counted = seconds is not None and spec.mode.removesuffix(GRAPH) != DEPTHWISE  # which is another network
    known = side.memory_mb is not None and not math.isnan(side.memory_mb)
    return {
        "amp": spec.amp,
        "step_ms": _milliseconds(side),
        "images_per_s": round(spec.batch / seconds, 2) if seconds else "",
        "memory_mb": round(side.memory_mb or 0, 1) if known else "",
        "model_gflops": round(6 * macs * spec.batch / seconds / 1e9, 1) if counted and seconds else "",
        "peak_gflops": peak,
        "note": side.note,
    }


def _milliseconds(side: Side) -> Any:
    return round(statistics.median(side.times) * 1e3, 3) if side.times else ""


def _peers_of(model: str, device: str) -> tuple[str, ...]:
    """On a GPU each also as a CUDA graph: small networks' steps are otherwise bound by launching."""
    peers = PEERS if _is_timms(model) else SHIFT_PEERS
    return peers if device == "cpu" else (*peers, *(mode + GRAPH for mode in peers))


def _chosen(wanted: Sequence[str], there: Sequence[str]) -> tuple[str, ...]:
    for mode in wanted:
        if mode not in there:
            raise StarshiftError(f"mode is one of {', '.join(there)}; not '{mode}'.{nearest(mode, there)}")
    return tuple(mode for mode in there if mode in (wanted or there))


def _is_small(model: str) -> bool:
    """Whether it is for images of 32 pixels."""
    from timm.models import get_pretrained_cfg

    from starshift import models  # noqa: F401  timm knows ours from here on

    config = get_pretrained_cfg(model)
    return config is not None and config.input_size[-1] == 32


def _is_timms(model: str) -> bool:
    """Whether timm has it of its own accord: it lists ours too, once they are imported."""
    from timm.models import is_model, model_entrypoint

    return is_model(model) and model_entrypoint(model).__module__.startswith("timm.")


def _macs(model: str, size: int) -> int:
    from starshift.models import count_macs, create_model

    return count_macs(create_model(model, **ARGUMENTS.get(model, {})), (size, size))


def _threads() -> int:
    import torch

    return torch.get_num_threads()


_STARTED = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
