# SPDX-License-Identifier: Apache-2.0
"""The two things that run in processes of their own: a network in one form, timed; and the workshop that exports."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from typing import Any

from starshift.bench.forms import COMPILE, EAGER, INT8, KERNELS, TIMM_ONNX, TORCH, Form
from starshift.bench.memory import forget_peak, peak_mb, resident_mb
from starshift.bench.subjects import Facts, Subject, facts_of, open_subject
from starshift.deploy import get_target
from starshift.deploy._source import Source
from starshift.errors import StarshiftError

IMPORTS: Mapping[str, tuple[str, ...]] = {
    COMPILE: ("torch._inductor.compile_fx", "torch._inductor.fx_passes.fuse_attention", "torch.utils.cpp_extension"),
    "torch": ("torch._inductor.compile_fx", "torch.export.pt2_archive._package", "torch.export._trace"),
    "aotinductor": ("torch._inductor.compile_fx", "torch._inductor.package", "torch.utils.cpp_extension"),
    "executorch": ("executorch.runtime",),
    "litert": ("ai_edge_litert.interpreter", "ai_edge_litert.schema_py_generated"),
}
"""What a form imports as it loads, beside the packages of its target's runtime."""
Run = Callable[[], object]


class Timed:
    """A network in one form, loaded, with one batch to answer.

    Args:
        subject, form: what, and how it is run.
        file: the exported file, for forms that are files.
        batch, size: images of a call, and their side in pixels where the network does not say.
        threads: of the runtime.
    """

    def __init__(self, subject: Subject, form: Form, file: str, batch: int, size: int | None, threads: int) -> None:
        import torch

        from starshift.training.machine import keep_freed_memory

        keep_freed_memory()  # eager PyTorch needs it, and the others do not mind
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        _import(form)
        make = _torch_form if form.target in TORCH else _timms_file if form.target == TIMM_ONNX else _exported
        load = make(subject, form, file, batch, size)
        gc.collect()
        self._before = resident_mb("cpu")
        forget_peak("cpu")
        start = time.perf_counter()
        self._run = load()
        self._load_s = time.perf_counter() - start

    def first(self) -> tuple[float, float]:
        """(seconds to load, seconds of the first answer); compilers compile in it."""
        start = time.perf_counter()
        self._run()
        return self._load_s, time.perf_counter() - start

    def turn(self, calls: int) -> tuple[list[float], float]:
        """Seconds of each of so many calls, after one that does not count since others used the caches before; and
        the cores that were busy meanwhile."""
        self._run()
        seconds = []
        cpu, start = time.process_time(), time.perf_counter()
        for _ in range(calls):
            before = time.perf_counter()
            self._run()
            seconds.append(time.perf_counter() - before)
        return seconds, (time.process_time() - cpu) / (time.perf_counter() - start)

    def memory_mb(self) -> float:
        """At its peak beyond what the process held before it loaded the network; not a number off Linux."""
        return peak_mb("cpu") - self._before


class Workshop:
    """Opens, counts, exports and evaluates, so that what an exporter leaves behind or breaks is in no measured
    process."""

    def facts(self, subject: Subject, size: int | None) -> Facts:
        return facts_of(subject, size)

    def export(self, subject: Subject, form: Form, path: str, size: int | None, data: str | None) -> dict[str, Any]:
        """Write and check the file; answers ``export_s``, ``relative_error`` and ``checked_on``."""
        source = open_subject(subject, size)
        start = time.perf_counter()
        if form.target == TIMM_ONNX:
            _export_by_timm(source.model, source.preprocessing.size, path)
            return {"export_s": round(time.perf_counter() - start, 1)}
        from starshift.deploy import export_checked, get_target

        chosen: dict[str, Any] = {}
        if data is not None and not subject.trained:
            source, chosen = _named_after(source, data), {"max_drop": math.inf}  # they have no accuracy to lose
        if form.precision == INT8:
            chosen["quantize"] = INT8
        elif hasattr(get_target(form.target), "precisions"):
            chosen["precision"] = form.precision
        done = export_checked(source, form.target, path, data=data, **chosen)
        return {
            "export_s": round(done.seconds, 1),
            "relative_error": "" if done.relative_error is None else f"{done.relative_error:.1e}",
            "checked_on": done.checked_on,
        }

    def evaluate(self, what: str, size: int | None, data: str) -> tuple[float, int]:
        """(top-1 in percent, images) of a file, or of a run on images of ``size``, by default its own."""
        from starshift.infer import evaluate, load

        predictor = load(what, device="cpu")
        if size is not None:
            predictor.preprocessing = replace(predictor.preprocessing, size=(size, size))
        result = evaluate(predictor, data, workers=0)  # this process may have none of its own
        return result.top1, result.n


def _named_after(source: Source, data: str) -> Source:
    """Random weights have no classes of their own: the data's take the first places, so that it can calibrate."""
    from starshift.data import open_data

    theirs = open_data(data, channels=source.preprocessing.channels).train.classes
    if len(theirs) > len(source.classes):
        raise StarshiftError(f"{data} has {len(theirs)} classes, {source.name} {len(source.classes)} outputs")
    rest = [name for name in source.classes if name not in theirs]
    return replace(source, classes=(*theirs, *rest)[: len(source.classes)])


def _export_by_timm(model: Any, side: tuple[int, int], path: str) -> None:
    from timm.utils.onnx import onnx_export

    onnx_export(model, path, input_size=(3, *side), batch_size=2, use_dynamo=True, external_data=False)


def _import(form: Form) -> None:
    """What loading would import otherwise, so that it is in no time and in no memory that is measured."""
    for package in () if form.target in TORCH else get_target(form.format).runtime:
        import_module(package)
    for name in IMPORTS.get(form.target, ()):
        with suppress(ModuleNotFoundError):  # of another version, which imports what it has as it loads
            import_module(name)


def _torch_form(subject: Subject, form: Form, file: str, batch: int, size: int | None) -> Callable[[], Run]:
    import torch

    from starshift.acceleration import accelerate
    from starshift.layers import fold_batchnorm
    from starshift.models import create_model  # noqa: F401  so that its imports are not counted as loading
    from starshift.ops._operator import kernels_switched

    def load() -> Run:
        source = open_subject(subject, size)
        model = source.model if form.target == EAGER else fold_batchnorm(source.model)
        model = model.to(memory_format=torch.channels_last)
        if form.target == KERNELS and type(model).__module__.startswith("timm."):
            accelerate(model)
        run = torch.compile(model) if form.target == COMPILE else model
        images = torch.randn(batch, source.preprocessing.channels, *source.preprocessing.size)
        images = images.contiguous(memory_format=torch.channels_last)

        @torch.inference_mode()
        def answer() -> Any:
            with kernels_switched(form.target == KERNELS):
                return run(images)

        return answer

    return load


def _exported(subject: Subject, form: Form, file: str, batch: int, size: int | None) -> Callable[[], Run]:
    import torch

    from starshift.deploy import load_exported

    def load() -> Run:
        predictor = load_exported(file)
        facts = predictor.preprocessing
        images = torch.randn(batch, facts.channels, *facts.size)
        return lambda: predictor.logits(images)

    return load


def _timms_file(subject: Subject, form: Form, file: str, batch: int, size: int | None) -> Callable[[], Run]:
    import onnxruntime
    import torch

    def load() -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        images = torch.randn(batch, *given.shape[1:]).numpy()
        return lambda: session.run(None, {given.name: images})

    return load
