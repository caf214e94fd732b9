# SPDX-License-Identifier: Apache-2.0
"""int8 after the training: calibrated on images, and no more accuracy lost than allowed, by layers left in float."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from starshift.data import ImageSet, eval_loader, open_data, open_eval_data
from starshift.data.images import Selection
from starshift.deploy._metadata import Metadata
from starshift.deploy._place import remove
from starshift.deploy._predictor import Predictor
from starshift.deploy._sensitivity import by_sensitivity
from starshift.deploy._source import Source
from starshift.deploy._target import Target
from starshift.errors import StarshiftError

CALIBRATION = 256  # images; more moved no range that mattered
HELD_OUT = 5000  # images at most that the accuracy is measured on
BATCH = 32
ATTEMPTS = 12  # at finding fewer layers to leave in float, each an export and a measurement


@dataclass(frozen=True)
class Images:
    """What int8 is made and judged with.

    Attributes:
        calibration: preprocessed float32 batches.
        held_out: labelled images that are not among them.
        origin: in words.
    """

    calibration: list[Tensor]
    held_out: ImageSet
    origin: str


@dataclass(frozen=True)
class Quantised:
    """How an int8 file does.

    Attributes:
        kept_float: layers that stayed in float32, the most sensitive first.
        layers: how many there are.
        top1_float, top1: percent right of the network and of the file; not a number where any loss was allowed.
        n: held-out images they were measured on.
    """

    kept_float: tuple[str, ...]
    layers: int
    top1_float: float
    top1: float
    n: int


def open_images(network: Source, data: str | Path | None) -> Images:
    """Images to calibrate with and others to measure on: of ``data``, else of what the network was trained on.

    Of a run's own data the training part calibrates and the held-out part measures; of other data, at most half (chosen
    at random, always alike) calibrates and the rest measures.

    Raises:
        StarshiftError: there is no such data, or none of its images can be read.
    """
    channels, trained_on = network.preprocessing.channels, network.trained_on
    if data is None and not trained_on.data:
        raise StarshiftError("int8 needs images to calibrate with: give a folder of labelled ones with --data FOLDER")
    if data is None or trained_on.is_data(str(data)):
        opened = open_data(trained_on.data, channels=channels, **trained_on.opening)
        if tuple(opened.train.classes) != tuple(network.classes):
            raise StarshiftError(
                f"the classes of {trained_on.data} are no longer those that the run was trained on: "
                "give labelled images of its classes with --data FOLDER"
            )
        calibration, held_out, origin = opened.train, opened.val, trained_on.data
    else:
        images, origin = open_eval_data(str(data), network.classes, channels=channels), str(data)
        order = _shuffled(len(images))
        count = min(CALIBRATION, len(images) // 2)
        calibration, held_out = Selection(images, order[:count]), Selection(images, order[count:])
    sample = Selection(calibration, _shuffled(len(calibration))[:CALIBRATION])
    loader = eval_loader(sample, network.preprocessing, batch_size=BATCH, workers=0)
    # An exporter fixes the memory order that it saw, and a file is asked in the usual one.
    batches = [batch.image.contiguous() for batch in loader if len(batch.image)]
    if not batches or not len(held_out):
        raise StarshiftError(f"no image of {origin} could be read to calibrate int8 with")
    if len(held_out) > HELD_OUT:
        held_out = Selection(held_out, _shuffled(len(held_out))[:HELD_OUT])
    return Images(batches, held_out, origin)


def write_int8(
    target: Target,
    model: nn.Module,
    images: Images,
    metadata: Metadata,
    path: Path,
    max_drop: float,
    say: Callable[[str], None],
) -> Quantised:
    """Write an int8 file that loses at most ``max_drop`` points of top-1 on the held-out images; where that is
    infinite, none are looked at.

    All layers are tried first. While too much is lost, twice as many of the most sensitive stay in float; then the
    number is halved back to the smallest that will do, and those of them that need not stay go too.

    Raises:
        StarshiftError: too much is lost even with every layer in float.
    """
    if math.isinf(max_drop):
        target.export_int8(model, images.calibration, metadata, path)
        return Quantised((), _count(model), math.nan, math.nan, 0)
    preprocessing = metadata.preprocessing
    before, n = top1(lambda batch: model(batch), images.held_out, preprocessing)
    found = math.nan

    def attempt(kept: tuple[str, ...]) -> bool:
        nonlocal found
        remove(path)
        target.export_int8(model, images.calibration, replace(metadata, kept_float=kept), path)
        predictor: Predictor = target.load(path)
        found, _ = top1(predictor.logits, images.held_out, preprocessing)
        say(f"int8 with {len(kept)} layers in float: top-1 {found:.2f}%, in float {before:.2f}%")
        return before - found <= max_drop

    if attempt(()):
        return Quantised((), _count(model), before, found, n)
    layers = tuple(by_sensitivity(model, images.calibration[0]))
    failed, passed = 0, 1
    while not attempt(layers[:passed]):
        if passed == len(layers):
            raise StarshiftError(
                f"int8 loses {before - found:.2f} points of top-1 on {n} images of {images.origin} with every"
                f" layer in float, above {max_drop:g}: give a larger --max-drop or more images (--data)"
            )
        failed, passed = passed, min(2 * passed, len(layers))
    return Quantised(_fewest(layers, failed, passed, attempt), len(layers), before, found, n)


def _fewest(
    layers: tuple[str, ...], failed: int, passed: int, attempt: Callable[[tuple[str, ...]], bool]
) -> tuple[str, ...]:
    """Few layers that will do; their file is the one that is left. The first ``passed`` will, the first ``failed`` not.

    The last of the shortest beginning that will do is needed. Beside it a shorter beginning may do, and so on, as long
    as few attempts are made.
    """
    needed: tuple[str, ...] = ()
    tried = [layers[:passed]]

    def will_do(kept: tuple[str, ...]) -> bool:
        tried.append(kept)
        return attempt(kept)

    while passed and len(tried) <= ATTEMPTS:  # layers[:passed] + needed will do, throughout
        while passed - failed > 1:
            middle = (failed + passed) // 2
            if will_do(layers[:middle] + needed):
                passed = middle
            else:
                failed = middle
        needed = (layers[passed - 1], *needed)
        failed, passed = 0, passed - 1
        if passed and will_do(needed):
            passed = 0
    kept = layers[:passed] + needed
    if tried[-1] != kept:
        attempt(kept)
    return kept


@torch.inference_mode()
def top1(logits: Callable[[Tensor], Tensor], images: ImageSet, preprocessing: Any) -> tuple[float, int]:
    """Percent of labelled images answered right, and how many could be read.

    Raises:
        StarshiftError: none could.
    """
    right = n = 0
    for batch in eval_loader(images, preprocessing, batch_size=BATCH, workers=0):
        if len(batch.target):
            right += int((logits(batch.image).argmax(1) == batch.target).sum())
            n += len(batch.target)
    if not n:
        raise StarshiftError("none of the held-out images could be read: int8 cannot be judged")
    return 100 * right / n, n


def weights_of(model: nn.Module, layers: Iterable[str]) -> list[Any]:
    """The weights of layers as numpy arrays, to find them by in another format's graph."""
    state = model.state_dict()
    return [state[f"{layer}.weight"].detach().numpy() for layer in layers]


def is_of(weight: Any, found: Any) -> bool:
    """Whether what was found in another format's graph is this weight: its values in order, or for a linear map also
    its transpose, or some outputs of either."""
    if found.size == weight.size and (found.ravel() == weight.ravel()).all():
        return True
    if weight.ndim != 2 or found.ndim != 2:
        return False
    outputs = {row.tobytes() for row in weight}
    return any(outputs.issuperset(row.tobytes() for row in rows) for rows in (found, found.T))


def of_every(layers: Sequence[str], found: Iterable[list[Any]]) -> list[Any]:
    """What was found of each layer, together.

    Raises:
        StarshiftError: nothing of one.
    """
    together = []
    for layer, own in zip(layers, found, strict=True):
        if not own:
            raise StarshiftError(
                f"layer {layer} cannot stay in float: the exporter wrote its weights in another form."
                " Give a larger --max-drop, or another format"
            )
        together += own
    return together


def int8_weights(weights: Any) -> tuple[Any, Any]:
    """Weights (C, ...) as int8 and the float32 scale of each output channel that gives them back, numpy both."""
    import numpy as np

    shape = (-1, *[1] * (weights.ndim - 1))
    largest = np.abs(weights.reshape(len(weights), -1)).max(1).reshape(shape)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(weights / scale).astype(np.int8), scale


def _count(model: nn.Module) -> int:
    return sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules())


def _shuffled(count: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
