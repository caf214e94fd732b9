# SPDX-License-Identifier: Apache-2.0
"""Which file to ship: latency, memory and accuracy of networks over every way to run them, in one run.

Each side (a network in one form, at one batch and number of threads) is a process of its own. Those of a group are
started one after another, then take turns, the order turned round each time, so that whatever slows the machine slows
all of them alike.
"""

from __future__ import annotations

import datetime
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from starshift.bench.forms import FLOAT32, TIMM_ONNX, Form, choose_forms, missing
from starshift.bench.recommend import TOLD
from starshift.bench.remote import Remote, RemoteError
from starshift.bench.rows import provenance
from starshift.bench.subjects import PEERS, TIMM, Facts, Subject, subject_of
from starshift.bench.timed import Timed, Workshop
from starshift.errors import StarshiftError

TURN_S = 0.15  # of a side, about: long enough for many calls, short enough that a slow second hits several sides
MOST_CALLS = 200  # of a turn
SIDE_MB = 700  # memory set aside for a side when groups are made
Say = Callable[[str], None]
Row = dict[str, Any]
Evaluated = dict[tuple[str, int | None], Row]
"""Columns of accuracy by what was evaluated, and at which size."""


@dataclass
class Plan:
    """A network in one form: its file, once it is exported, and what is known of it; or why it cannot be had."""

    subject: Subject
    form: Form
    facts: Facts
    file: str = ""
    columns: Row = field(default_factory=dict)
    note: str = ""


@dataclass
class Side:
    """A plan at one batch and number of threads, and what was measured of it so far."""

    plan: Plan
    batch: int
    threads: int
    process: Remote | None = None
    seconds: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)
    calls: int = 1
    columns: Row = field(default_factory=dict)
    note: str = ""

    def start(self, size: int | None) -> None:
        """Load, answer once, and see how many calls fill a turn."""
        plan = self.plan
        what = (plan.subject, plan.form, plan.file, self.batch, size, self.threads)
        self.process = Remote(Timed, *what, cores=self.threads)
        answer = self._ask("first")
        if answer is None:
            return
        self.columns |= {"load_ms": round(answer[0] * 1e3, 2), "first_ms": round(answer[1] * 1e3, 2)}
        trial = self._ask("turn", 2)
        if trial is not None:
            self.calls = max(1, min(MOST_CALLS, round(TURN_S / min(trial[0]))))

    def turn(self) -> None:
        answer = self._ask("turn", self.calls)
        if answer is not None:
            self.seconds += answer[0]
            self.cores.append(answer[1])

    @property
    def running(self) -> bool:
        return self.process is not None and not self.note

    def end(self) -> None:
        if self.running:
            memory = self._ask("memory_mb")
            self.columns["memory_mb"] = "" if memory is None or math.isnan(memory) else round(memory, 1)
        if self.process is not None:
            self.process.end()
            self.process = None

    def _ask(self, method: str, *arguments: Any) -> Any:
        assert self.process is not None
        try:
            return self.process.call(method, *arguments)
        except (RemoteError, StarshiftError) as error:
            self.note = f"failed: {error}"
            return None


def bench_deploy(
    models: Sequence[str],
    *,
    targets: Sequence[str] = (),
    threads: Sequence[int] = (1,),
    batches: Sequence[int] = (1,),
    size: int | None = None,
    peers: bool = False,
    rounds: int = 15,
    data: str | None = None,
    say: Say = lambda text: None,
) -> Iterator[list[Row]]:
    """Measure networks over the ways to run them; yields the rows of each group as soon as it is measured.

    Args:
        models: names, run or model folders, ``timm:NAME``, or exported files.
        targets: forms, see :func:`starshift.bench.forms.choose_forms`; default: all.
        threads, batches: to measure with, every pair of them.
        size: side of the images; default: each network's own. A file has its own in any case.
        peers: also :data:`starshift.bench.subjects.PEERS` of timm.
        rounds: turns of each side.
        data: labelled images: the accuracy of networks that have weights is measured on them, and quantized files are
            calibrated with some.
        say: called with a line of progress.

    Raises:
        StarshiftError: an unknown model or target. What fails later becomes a row with a ``note``.
        KeyboardInterrupt: after the rows of what was measured so far were yielded.
    """
    forms = choose_forms(targets)
    subjects = list(dict.fromkeys(subject_of(text) for text in models))
    subjects += [Subject(TIMM + name) for name in PEERS] if peers else []
    if not subjects:
        raise StarshiftError("nothing to measure: name a model, a run or an exported file, or give --peers")
    common = {"suite": "deploy", "run": _now(), **provenance()}
    with tempfile.TemporaryDirectory(prefix="starshift-bench-") as folder:
        plans = _prepare(subjects, forms, Path(folder), size, data, say)
        failed = [plan for plan in plans if plan.note]
        if failed:
            yield [_row(Side(plan, 0, 0, note=plan.note), common, 0) for plan in failed]
        ready = [plan for plan in plans if not plan.note]
        number = 0
        for count, batch in product(threads, batches):
            for group in _groups(ready):
                number += 1
                sides = [Side(plan, batch, count) for plan in group]
                stopped = _take_turns(sides, size, rounds, say)
                yield [_row(side, common, number) for side in sides if side.seconds or side.note]
                if stopped is not None:
                    raise stopped


def _prepare(
    subjects: list[Subject], forms: list[Form], folder: Path, size: int | None, data: str | None, say: Say
) -> list[Plan]:
    """Open every subject, then export and evaluate: a plan for each form of each."""
    shop = Remote(Workshop)
    try:
        facts = {}
        for subject in subjects:
            say(f"{subject.name}: opening")
            try:
                facts[subject] = shop.call("facts", subject, size)
            except RemoteError as error:
                raise StarshiftError(f"{subject.name} cannot be opened: {error}") from error
        plans = []
        for subject in subjects:
            evaluated: Evaluated = {}
            for form in _forms_of(subject, facts[subject], forms):
                plan = Plan(subject, form, facts[subject], note=missing(form) or "")
                plans.append(plan)
                if plan.note:
                    continue
                if not shop.running:  # an exporter took it along
                    shop.end()
                    shop = Remote(Workshop)
                try:
                    _make(plan, shop, folder / str(len(plans)), size, data, evaluated, say)
                except (RemoteError, StarshiftError) as error:
                    plan.note = f"failed: {error}"
        return plans
    finally:
        shop.end()


def _make(
    plan: Plan, shop: Remote, folder: Path, size: int | None, data: str | None, evaluated: Evaluated, say: Say
) -> None:
    """Export where the form is a file, and evaluate where there are data and weights."""
    from starshift.deploy import get_target
    from starshift.deploy._place import size_of

    subject, form = plan.subject, plan.form
    if subject.file:
        plan.file = subject.text
    elif form.is_file:
        say(f"{subject.name}: exporting {form.name}")
        suffix = get_target(form.format).suffix
        folder.mkdir()
        plan.file = str(folder / f"model{suffix}")
        plan.columns |= shop.call("export", subject, form, plan.file, size, data, limit_s=None)
    if plan.file:
        plan.columns["file_mb"] = round(size_of(Path(plan.file) if subject.file else folder) / 1e6, 3)
    if data is not None and plan.facts.weights:
        what = (plan.file, None) if plan.file else (subject.text, size)  # a file has a size of its own
        if what not in evaluated:
            say(f"{subject.name}: accuracy of {form.name if plan.file else 'PyTorch'}")
            evaluated[what] = _accuracy(shop, *what, data)
        plan.columns |= evaluated[what]


def _accuracy(shop: Remote, what: str, size: int | None, data: str) -> Row:
    """Its columns; a remark alone where it cannot be measured, which keeps nobody from timing the network."""
    try:
        top1, images = shop.call("evaluate", what, size, data, limit_s=None)
    except (RemoteError, StarshiftError) as error:
        return {"remark": f"accuracy not measured: {error}"}
    return {"top1": round(top1, 3), "top1_images": images}


def _forms_of(subject: Subject, facts: Facts, forms: list[Form]) -> list[Form]:
    """Those that the subject can have: a file is what it is; timm's export is for timm's networks."""
    if subject.file:
        from starshift.deploy import target_of

        target = target_of(Path(subject.text))
        assert target is not None
        return [Form(target.name, facts.precision)]
    return [form for form in forms if form.target != TIMM_ONNX or subject.timms]


def _groups(plans: list[Plan]) -> Iterator[list[Plan]]:
    """As many as fit in memory at once; the forms of a network stay together where they can."""
    most = max(4, int(_available_mb() / SIDE_MB))
    group: list[Plan] = []
    for subject in dict.fromkeys(plan.subject for plan in plans):
        own = [plan for plan in plans if plan.subject == subject]
        if group and len(group) + len(own) > most:
            yield group
            group = []
        group += own
    if group:
        yield group


def _available_mb() -> float:
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable:")), 8000.0)


def _take_turns(sides: list[Side], size: int | None, rounds: int, say: Say) -> KeyboardInterrupt | None:
    """Start all, let them take turns, end them; returns the interrupt that ended it early, if one did."""
    done = 0
    try:
        for side in sides:
            say(f"{side.plan.subject.name}, {side.plan.form.name}, batch {side.batch}, {side.threads} thread(s): start")
            side.start(size)
            if side.note:
                say(side.note)
        for done in range(rounds):
            say(f"round {done + 1} of {rounds}")
            for side in sides if done % 2 else reversed(sides):
                if side.running:
                    side.turn()
    except KeyboardInterrupt as stop:
        for side in sides:
            side.note = side.note or f"interrupted in round {done + 1} of {rounds}"
        return stop
    finally:
        for side in sides:
            side.end()
    return None


def _row(side: Side, common: Row, group: int) -> Row:
    import numpy as np

    from starshift.ops import _native

    plan, times = side.plan, side.seconds
    low, middle, high = np.percentile(times, (5, 50, 95)).tolist() if times else (0.0, 0.0, 0.0)
    cores = round(sum(side.cores) / len(side.cores), 2) if side.cores else 0.0
    notes = [note for note in (side.note, plan.columns.get("remark")) if note]
    if cores > side.threads + 0.3:
        notes.append(f"used {cores} cores, {TOLD} {side.threads}")
    return {
        "suite": common["suite"],
        "run": common["run"],
        "group": group or "",
        "model": plan.subject.name,
        "target": plan.form.target,
        "precision": plan.form.precision,
        "batch": side.batch or "",
        "size": plan.facts.size,
        "threads": side.threads or "",
        "latency_ms": round(middle * 1e3, 4) if middle else "",
        "p5_ms": round(low * 1e3, 4) if times else "",
        "p95_ms": round(high * 1e3, 4) if times else "",
        "images_per_s": round(side.batch / middle, 2) if middle else "",
        **{name: side.columns.get(name, "") for name in ("first_ms", "load_ms", "memory_mb")},
        **{name: plan.columns.get(name, "") for name in ("file_mb", "export_s", "relative_error", "checked_on")},
        "params": plan.facts.params or "",
        "macs": plan.facts.macs or "",
        "top1": plan.columns.get("top1", ""),
        "top1_images": plan.columns.get("top1_images", ""),
        "published_top1": plan.facts.published or "" if plan.form.precision == FLOAT32 else "",
        "calls": len(times),
        "cores_used": cores or "",
        "kernels": _native.instruction_set() or "none",
        "user_agent": "",
        "note": "; ".join(notes),
        **{name: value for name, value in common.items() if name not in ("suite", "run")},
    }


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
