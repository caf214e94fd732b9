# SPDX-License-Identifier: Apache-2.0
"""Export: fold, write beside the final place, load back, compare with PyTorch, and only then rename."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from starshift.deploy._int8 import Images, Quantised, open_images, write_int8
from starshift.deploy._metadata import Metadata, package_versions
from starshift.deploy._place import put_in_place, remove, size_of
from starshift.deploy._source import CHECK_IMAGES, Source, noise_images, open_source
from starshift.deploy._target import Target, get_target, require, targets
from starshift.errors import StarshiftError
from starshift.machine import source_commit

MAX_DROP = 0.5  # points of top-1
INT8 = 0.5  # relative error of int8 logits above which a file is broken, whatever its accuracy


@dataclass(frozen=True)
class Exported:
    """A finished, checked file.

    Attributes:
        model: architecture.
        path: where it lies.
        format: name of the target.
        size: bytes.
        precision: see :class:`Metadata`.
        relative_error: of its logits against PyTorch's (see ``relative_error``), on batches of 1 and 5; None where no
            file of the format can answer on this machine.
        checked_on: which images that was measured on.
        seconds: the whole export took.
        int8: how it does against the network in float; None for a file that is not quantised.
    """

    model: str
    path: Path
    format: str
    size: int
    precision: str
    relative_error: float | None
    checked_on: str
    seconds: float
    int8: Quantised | None = None


def export(
    source: str | Path,
    format: str = "onnx",
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
    img_size: int | None = None,
    precision: str | None = None,
    quantize: str | None = None,
    max_drop: float = MAX_DROP,
    on_step: Callable[[str], None] | None = None,
) -> Path:
    """Write a network as one file for another runtime, checked against PyTorch before it is put in place.

    Batch norm is folded, dropout and drop path are gone, any batch size works; labels, preprocessing, licence and
    versions travel in the file. The reference of the check is the unfolded network in float32.

    Args:
        source: run folder, model folder, ``local-dir:...``, ``hf-hub:...``, or the name of an architecture.
        format: a target: the name of a file in ``starshift/deploy``.
        out: file or existing folder; default: ``model.onnx`` in the run's folder; else ``NAME.onnx`` here; in another
            precision than the format's first ``model-int8.onnx`` and so on.
        data: images to check with (as ``eval`` takes them); default: the run's validation images, else seeded noise.
        checkpoint: weights for the name of an architecture.
        pretrained: the published weights for the name of an architecture; without either they are random.
        img_size: side of the input in pixels; default: that of the network.
        precision: one of the target's ``precisions``; default: its first.
        quantize: ``int8``: after the training, with images of ``data`` (labelled) or of the run's own data.
        max_drop: points of top-1 that int8 may lose on held-out images; layers stay in float until it does not.
            Infinite: accuracy is not measured.
        on_step: told in words what was just found.

    Raises:
        StarshiftError: unknown source or format, no published weights, a package missing, the format cannot hold the
            network, or the file answers differently from PyTorch. No file is left behind then.
    """
    return export_checked(
        source,
        format,
        out,
        data=data,
        checkpoint=checkpoint,
        pretrained=pretrained,
        img_size=img_size,
        precision=precision,
        quantize=quantize,
        max_drop=max_drop,
        on_step=on_step,
    ).path


def export_checked(
    source: str | Path | Source,
    format: str = "onnx",
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
    img_size: int | None = None,
    precision: str | None = None,
    quantize: str | None = None,
    max_drop: float = MAX_DROP,
    on_step: Callable[[str], None] | None = None,
) -> Exported:
    """As :func:`export`, and return what was found with it; ``source`` may also be a network that is open already."""
    start = time.perf_counter()
    target, precision = checked_target(format, precision, quantize)
    say = on_step or (lambda text: None)
    network = open_source(source, checkpoint=checkpoint, pretrained=pretrained, img_size=img_size)
    if not network.trained:
        say(f"warning: {network.name} has random weights and names nothing right: give --checkpoint or --pretrained")
    images, checked_on = _check_images(network, data)
    final = _final_path(network, target, precision, out)
    partial = final.with_name(f".partial-{os.getpid()}-{final.name}")
    try:
        judged = open_images(network, data) if quantize else None
        int8 = _write(target, network, precision, partial, judged, max_drop, say)
        error = target.check(network.model, partial, images)
        tolerance = INT8 if int8 else target.precisions[precision]
        if error is not None and error > tolerance:
            raise StarshiftError(
                f"the {format} file answers differently from PyTorch: relative error {error:.1e} on {checked_on},"
                f" above {tolerance:.0e}. No file was written"
            )
        put_in_place(partial, final)
    finally:
        remove(partial)
    return Exported(
        network.name, final, format, size_of(final), precision, error, checked_on, time.perf_counter() - start, int8
    )


def checked_target(format: str, precision: str | None = None, quantize: str | None = None) -> tuple[Target, str]:
    """The target, and the precision it would write.

    Raises:
        StarshiftError: no such format, it has no such precision, or packages are missing.
    """
    target = get_target(format)
    precision = _precision(target, precision, quantize)
    require(target, int8=quantize is not None)
    return target, precision


def _precision(target: Target, precision: str | None, quantize: str | None) -> str:
    if quantize is not None:
        able = [name for name, t in targets().items() if t.int8_packages is not None]
        if quantize != "int8" or precision is not None:
            raise StarshiftError(f"the one kind of quantisation is int8, without --precision; not '{quantize}'")
        if target.name not in able:
            raise StarshiftError(f"{target.name} has no int8 here; {', '.join(able)} have")
        return quantize
    if precision is None:
        return next(iter(target.precisions))
    if precision not in target.precisions:
        raise StarshiftError(f"{target.name} is written in {' or '.join(target.precisions)}, not '{precision}'")
    return precision


def _write(
    target: Target,
    network: Source,
    precision: str,
    path: Path,
    images: Images | None,
    max_drop: float,
    say: Callable[[str], None],
) -> Quantised | None:
    from starshift.deploy._lower import lower_
    from starshift.layers import fold_batchnorm

    metadata = Metadata(
        model=network.name,
        classes=network.classes,
        preprocessing=network.preprocessing,
        model_args=network.model_args,
        trained_on=network.trained_on,
        license=network.license or "weights: not stated; starshift: Apache-2.0",
        versions=package_versions("torch", "timm", *target.packages, *(target.int8_packages or () if images else ())),
        commit=source_commit(),
        precision=precision,
        trained=network.trained,
    )
    example = noise_images(network.preprocessing, 2)
    try:
        with torch.no_grad():
            model = lower_(fold_batchnorm(network.model), target.name)
            if images is not None:
                return write_int8(target, model, images, metadata, path, max_drop, say)
            target.export(model, example, metadata, path)
            return None
    except (OSError, StarshiftError):
        raise
    except Exception as error:  # each exporter has classes of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StarshiftError(f"{network.name} cannot be written as {target.name}: {reason}") from error


def _final_path(network: Source, target: Target, precision: str, out: str | Path | None) -> Path:
    """Where the file goes: by default each precision has a name of its own, so that none takes another's place."""
    stem = "model" if network.folder else network.name
    default = (stem if precision == next(iter(target.precisions)) else f"{stem}-{precision}") + target.suffix
    if out is None:
        final = (network.folder or Path()) / default
    else:
        final = Path(out)
        if final.is_dir() and not final.name.endswith(target.suffix):  # some formats are folders themselves
            final = final / default
        if not final.name.endswith(target.suffix):
            raise StarshiftError(f"{final}: a file of format {target.name} ends in {target.suffix}")
    if not final.parent.is_dir():
        raise StarshiftError(f"no folder {final.parent} to write {final.name} into")
    return final


def _check_images(network: Source, data: str | Path | None) -> tuple[Tensor, str]:
    """Preprocessed images (5, or as many as there are) to compare on, and in words where they are from."""
    from starshift.data import eval_loader, open_data, open_eval_data
    from starshift.data.images import Selection

    channels, trained_on = network.preprocessing.channels, network.trained_on
    if data is not None:
        images, origin = open_eval_data(str(data), network.classes, channels=channels), str(data)
    elif trained_on.data:
        try:
            images = open_data(trained_on.data, channels=channels, **trained_on.opening).val
        except StarshiftError:  # the data may have moved since the training
            return noise_images(network.preprocessing), "seeded noise (the training data is no longer there)"
        origin = f"the validation split of {trained_on.data}"
    else:
        return noise_images(network.preprocessing), "seeded noise"
    some = Selection(images, range(min(len(images), CHECK_IMAGES**2)))  # more than are wanted: some may not be readable
    batches = eval_loader(some, network.preprocessing, batch_size=CHECK_IMAGES, workers=0)
    good = [batch.image for batch in batches if len(batch.image)]
    if not good:
        raise StarshiftError(f"no image of {origin} could be read to check the file with")
    found = torch.cat(good)[:CHECK_IMAGES]
    return found, f"{len(found)} images of {origin}"
