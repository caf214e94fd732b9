# SPDX-License-Identifier: Apache-2.0
"""A network to be timed, in a process of its own: its memory is then its own too.

The process builds the network, runs a first step (in which compilers compile) and then one more each time it is asked,
so that sides take turns. Both sides' processes keep freed memory (see :func:`keep_freed_memory`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starshift.bench.graph import recorded
from starshift.bench.memory import forget_peak, peak_mb, resident_mb
from starshift.bench.remote import Remote, RemoteError
from starshift.errors import StarshiftError

if TYPE_CHECKING:
    from starshift.deploy._source import Source

OURS = "starshift"
OURS_FOLDED = "starshift, norms folded"
REFERENCE_SHIFTS = "pad + slices + concat"
DEPTHWISE = "3x3 depthwise convs"
RUNTIME = "ONNX Runtime"
PEERS = ("timm channels last", "timm compile channels last", "timm", "timm compile")
SHIFT_PEERS = (REFERENCE_SHIFTS, DEPTHWISE)
GRAPH = " + CUDA graph"
"""A mode with this at its end records its whole step once and replays it: no time goes into launching kernels."""
ARGUMENTS: Mapping[str, Mapping[str, Any]] = {"shiftresnet20": {"expansion": 6, "num_classes": 10}}
"""Arguments that a model is measured with, where they are not its defaults."""
PASSES = 20  # forward passes of one timing of inference
Step = Callable[[], object]


@dataclass(frozen=True)
class Spec:
    """What to build and how to run it: ``mode`` is one of the names above, ``amp`` is ``none`` or ``bf16``."""

    model: str
    mode: str
    batch: int
    size: int
    threads: int
    amp: str = "none"
    device: str = "cpu"
    inference: bool = False


@dataclass
class Side:
    """A started process: seconds of its steps so far, and why it left, if it did."""

    spec: Spec
    times: list[float] = field(default_factory=list)
    note: str = ""
    memory_mb: float | None = None

    def start(self) -> None:
        """Build, and take the first step, which does not count."""
        self._folder = tempfile.TemporaryDirectory(prefix="starshift-bench-")
        self._process = Remote(Steps, self.spec, self._folder.name)
        self._ask("ready")

    @property
    def running(self) -> bool:
        return self._process.running and not self.note

    def step(self) -> float:
        """Seconds of one more step; infinite where it failed."""
        seconds = self._ask("step")
        if seconds is not None:
            self.times.append(seconds)
        return float("inf") if seconds is None else seconds

    def end(self) -> None:
        """Ask for the memory and let the process go."""
        if self.running:
            self.memory_mb = self._ask("memory_mb")
        self._process.end()
        self._folder.cleanup()

    def _ask(self, method: str) -> float | None:
        try:
            answer: float | None = self._process.call(method)
        except (RemoteError, StarshiftError) as error:
            self.note = f"failed: {error}"
            return None
        return answer


class Steps:
    """A network built to be timed, its first step taken.

    Args:
        spec: what to build.
        folder: for the files of runtimes.
    """

    def __init__(self, spec: Spec, folder: str) -> None:
        import torch

        from starshift.training.machine import keep_freed_memory

        keep_freed_memory()
        torch.set_num_threads(spec.threads)
        torch.backends.cudnn.allow_tf32 = False  # as PyTorch has it for matrix products: float32 means float32
        torch.manual_seed(0)
        self._spec = spec
        self._step, self._before = _inference(spec, Path(folder)) if spec.inference else _training(spec)
        if spec.mode.endswith(GRAPH):
            self._step = _recorded(self._step)
        self._step()
        forget_peak(spec.device)

    def ready(self) -> None:
        """Nothing; what it waits for is done by then."""

    def step(self) -> float:
        """Seconds of one more step."""
        start = time.perf_counter()
        self._step()
        return (time.perf_counter() - start) / (PASSES if self._spec.inference else 1)

    def memory_mb(self) -> float:
        """At its peak beyond what was in use before the network was built; not a number for a CUDA graph."""
        spec = self._spec
        return float("nan") if spec.mode.endswith(GRAPH) else peak_mb(spec.device) - self._before


def _training(spec: Spec) -> tuple[Step, float]:
    """A training step, and the memory (MB) in use before the network was built."""
    import torch
    import torch.nn.functional as F

    from starshift.ops import use_kernel

    build = _builder(spec)
    before = resident_mb(spec.device)
    model = build().to(spec.device).train()
    mode = spec.mode.removesuffix(GRAPH)
    last = mode not in ("timm", "timm compile")
    layout = torch.channels_last if last else torch.contiguous_format
    model = model.to(memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True, capturable=mode != spec.mode)
    run = torch.compile(model) if "compile" in mode else model
    images = torch.randn(spec.batch, 3, spec.size, spec.size, device=spec.device).contiguous(memory_format=layout)
    targets = torch.randint(0, 10, (spec.batch,), device=spec.device)
    forced = mode in SHIFT_PEERS

    def step() -> None:
        with use_kernel("reference") if forced else nullcontext():
            amp = spec.amp == "bf16"
            with torch.autocast(spec.device, torch.bfloat16, enabled=amp, cache_enabled=mode == spec.mode):
                loss = F.cross_entropy(run(images).float(), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if spec.device != "cpu" and not torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()

    return step, before


def _recorded(step: Step) -> Step:
    """The step as a CUDA graph."""
    import torch

    replay = recorded(step)

    def waited() -> None:
        replay()
        torch.cuda.synchronize()

    return waited


def _inference(spec: Spec, folder: Path) -> tuple[Step, float]:
    """:data:`PASSES` forward passes of a network in eval mode, and the memory (MB) in use before it was built."""
    import torch

    from starshift.layers import fold_batchnorm
    from starshift.ops import use_kernel

    images = torch.randn(spec.batch, 3, spec.size, spec.size)
    build = _builder(spec)
    before = resident_mb(spec.device)
    if spec.mode == RUNTIME:
        return _runtime(spec, folder, images.numpy()), before
    model = build().eval()
    if spec.mode == OURS_FOLDED:
        model = fold_batchnorm(model)
    last = torch.channels_last
    model, images = model.to(memory_format=last), images.contiguous(memory_format=last)
    forced = spec.mode in SHIFT_PEERS

    def step() -> None:
        with use_kernel("reference") if forced else nullcontext(), torch.inference_mode():
            for _ in range(PASSES):
                model(images)

    return step, before


def _runtime(spec: Spec, folder: Path, images: Any) -> Step:
    import onnxruntime

    from starshift.deploy import export_checked

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec.threads
    path = export_checked(_source(spec), "onnx", folder / "model.onnx").path
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def step() -> None:
        for _ in range(PASSES):
            session.run(None, {name: images})

    return step


def _source(spec: Spec) -> Source:
    """The network with its arguments, to be exported."""
    from starshift.deploy._source import class_names, open_source
    from starshift.models import create_model

    source = open_source(spec.model, img_size=spec.size)
    arguments = dict(ARGUMENTS.get(spec.model, {}))
    if not arguments:
        return source
    model: Any = create_model(spec.model, **arguments).eval()
    return replace(source, model=model, model_args=arguments, classes=class_names(model.num_classes))


def _builder(spec: Spec) -> Callable[[], Any]:
    """Imports all that building needs, so that the memory of the imports is not counted as the network's."""
    import timm

    import starshift
    from starshift.models import list_models

    arguments = ARGUMENTS.get(spec.model, {})
    if spec.mode.startswith("timm"):
        return lambda: timm.create_model(spec.model, **arguments)
    if spec.mode.removesuffix(GRAPH) == DEPTHWISE:
        return lambda: shifts_to_depthwise(starshift.create_model(spec.model, **arguments))
    if spec.model in list_models():
        return lambda: starshift.create_model(spec.model, **arguments)

    def accelerated() -> Any:
        model = timm.create_model(spec.model, **arguments)
        starshift.accelerate(model)
        return model

    return accelerated


def shifts_to_depthwise(model: Any) -> Any:
    """The same network with a 3x3 depthwise convolution in each shift's place; it takes the stride, where there is
    one. In place."""
    from torch import nn

    from starshift.layers import Shift2d, ShiftConv2d

    def depthwise(channels: int, stride: int = 1) -> nn.Conv2d:
        return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ShiftConv2d):
                point = nn.Conv2d(child.in_channels, child.out_channels, 1, bias=child.bias is not None)
                setattr(parent, name, nn.Sequential(depthwise(child.in_channels, child.stride[0]), point))
            elif isinstance(child, Shift2d):
                setattr(parent, name, depthwise(sum(n for n, _, _ in child.offsets)))
    return model
