# SPDX-License-Identifier: Apache-2.0
"""How many images a second the loaders give, beside torchvision's ImageFolder with Pillow on the same files in the
same run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from starshift.bench.clock import paired
from starshift.bench.rows import provenance
from starshift.data import Augment, ImageSet, eval_loader, train_loader
from starshift.data.folder import scan
from starshift.errors import StarshiftError
from starshift.preprocessing import Preprocessing

PEER = "torchvision ImageFolder + PIL"


def bench_loader(
    root: Path,
    *,
    size: int = 224,
    batch_size: int = 32,
    images: int = 128,
    rounds: int = 9,
    label: str = "",
    on_round: Callable[[str], None] = lambda text: None,
) -> Iterator[dict[str, Any]]:
    """Time training's and evaluation's loader on a folder of class folders; yields a row for each.

    Training is random resized crop (bilinear, torchvision's default), mirroring and normalisation; evaluation is
    resize of the shorter side to size / 0.875 (bilinear), centre crop and normalisation. All of it runs in this
    process, on one thread: workers of one side would read ahead while the other is timed.

    Args:
        root: a folder of class folders.
        size: side of the network's input.
        batch_size, images: of a batch, and timed in a round.
        rounds: pairs of timings; the medians are reported.
        label: what to call the images in the rows.
        on_round: called with a line of progress.

    Raises:
        StarshiftError: see :func:`starshift.data.folder.scan`.
    """
    found = scan(root)
    ours = found.images(list(found.files), channels=3)
    if len(ours) < batch_size:
        raise StarshiftError(f"{root} has {len(ours)} images, fewer than a batch of {batch_size}")
    preprocessing = Preprocessing((size, size), interpolation="bilinear", crop_pct=0.875)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for path in ("train", "eval"):
            on_round(f"{path}: {rounds} rounds of {images} images")
            batches = math.ceil(images / batch_size)
            mine = _endless(_our_loader(ours, preprocessing, path, batch_size))
            theirs = _endless(_peer_loader(root, preprocessing, path, batch_size))
            result = paired(partial(_take, mine, batches), partial(_take, theirs, batches), rounds)
            count = batches * batch_size
            yield {
                "suite": "loader",
                "path": path,
                "images": label or str(root),
                "size": size,
                "workers": 0,
                "rounds": rounds,
                **result.rates(count, PEER),
                **provenance(),
            }
    finally:
        torch.set_num_threads(threads)


def _our_loader(images: ImageSet, preprocessing: Preprocessing, path: str, batch_size: int) -> Any:
    if path == "eval":
        return eval_loader(images, preprocessing, batch_size=batch_size, workers=0)
    augment = Augment(train_interpolation="bilinear")
    return train_loader(images, preprocessing, augment, batch_size=batch_size, workers=0, seed=0)


def _peer_loader(root: Path, preprocessing: Preprocessing, path: str, batch_size: int) -> Any:
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    size = preprocessing.size[0]
    if path == "eval":
        geometry = [transforms.Resize(math.floor(size / preprocessing.crop_pct)), transforms.CenterCrop(size)]
    else:
        geometry = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    steps = [*geometry, transforms.ToTensor(), transforms.Normalize(preprocessing.mean, preprocessing.std)]
    data = ImageFolder(str(root), transforms.Compose(steps))
    train = path == "train"
    return DataLoader(data, batch_size, shuffle=train, drop_last=train)


def _endless(loader: Any) -> Iterator[Any]:
    for _ in cycle([0]):
        yield from (batch for batch in loader if len(batch[0]) == loader.batch_sampler.batch_size)


def _take(batches: Iterator[Any], count: int) -> None:
    for batch in islice(batches, count):
        batch[0].shape  # noqa: B018
