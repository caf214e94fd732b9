# SPDX-License-Identifier: Apache-2.0
"""Batches for training and evaluation, from an :class:`~starshift.data.images.ImageSet`.

Whatever is random in training is a function of (seed, epoch, position in the epoch), see
:mod:`starshift.data.randomness`. The batch sampler hands every sample's random seed along with its index, so the
batches are the same for any number of workers, with workers that live on or not, and after a repositioning in the
middle of an epoch. Positions count over all ranks: more processes divide the same epoch.
"""

from __future__ import annotations

import atexit
import math
import signal
import sys
import weakref
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from starshift.data.augment import Augment, pillow_augmentation
from starshift.data.images import ImageSet
from starshift.data.pipeline import EvalPipeline, TrainPipeline
from starshift.data.randomness import hashed, permutation
from starshift.errors import StarshiftError
from starshift.preprocessing import Preprocessing

_WORKER_GRACE_S = 10


class Batch(NamedTuple):
    """A batch of images.

    Attributes:
        image: float32 (N, C, H, W), normalised, channels last in memory.
        target: int64 (N,), class indices.
        index: int64 (N,), indices into the image set.
        bad: (name, reason) of images that could not be read: replaced by others in training, left out in evaluation.
            A batch of evaluation may be empty (N = 0) for that.
    """

    image: Tensor
    target: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    bad: list[tuple[str, str]]


Keys = list[tuple[int, int]]
"""A batch to be read: (index, random seed) of every sample."""


class TrainBatchSampler(Sampler[Keys]):
    """The batches of one rank in one epoch, by :class:`Keys`.

    An epoch is a random order of the set; with ``aug_repeats`` of r > 1 every image comes r times in a row (so that
    with r ranks each gets another augmentation of it) and the epoch, whose length stays, shows only 1/r of the images
    (Hoffer et al. 2020; as in DeiT).
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        aug_repeats: int = 0,
        drop_last: bool = True,
    ) -> None:
        _check_sharding(batch_size, rank, world_size)
        if count < world_size:
            raise StarshiftError(f"{count} training image(s) cannot be divided among {world_size} processes")
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world_size, self.aug_repeats = rank, world_size, aug_repeats
        self.per_rank = count // world_size
        self.drop_last = drop_last and self.per_rank >= batch_size
        self.epoch = self.skip_batches = 0

    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        """Go to batch ``skip_batches`` of ``epoch``; the next iteration starts there."""
        self.epoch, self.skip_batches = epoch, skip_batches

    def __len__(self) -> int:
        """Batches in a whole epoch, whatever is skipped."""
        return self.per_rank // self.batch_size if self.drop_last else math.ceil(self.per_rank / self.batch_size)

    def __iter__(self) -> Iterator[Keys]:
        order = permutation(self.count, self.seed, self.epoch)
        if self.aug_repeats > 1:
            order = np.repeat(order[: math.ceil(self.count / self.aug_repeats)], self.aug_repeats)[: self.count]
        mine = np.arange(self.rank, self.per_rank * self.world_size, self.world_size)
        indices = order[mine].tolist()
        seeds = hashed(self.seed, self.epoch, 1, mine).tolist()
        first, self.skip_batches = self.skip_batches, 0
        for batch in range(first, len(self)):
            part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            yield list(zip(indices[part], seeds[part], strict=True))


class EvalBatchSampler(Sampler[Keys]):
    """Every image once and in order; rank r of w reads r, r + w, r + 2w, ...: no image twice, so ranks may differ by
    one image."""

    def __init__(self, count: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        _check_sharding(batch_size, rank, world_size)
        self.indices = list(range(rank, count, world_size))
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / self.batch_size)

    def __iter__(self) -> Iterator[Keys]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(index, 0) for index in self.indices[start : start + self.batch_size]]


def _check_sharding(batch_size: int, rank: int, world_size: int) -> None:
    if batch_size < 1:
        raise StarshiftError(f"batch size must be at least 1, not {batch_size}")
    if not 0 <= rank < world_size:
        raise StarshiftError(f"rank must be in [0, {world_size}), not {rank}")


class _BatchDataset(Dataset[Any]):
    """Reads whole batches (PyTorch's fetcher calls ``__getitems__`` with a batch sampler's keys)."""

    def __init__(self, pipeline: TrainPipeline | EvalPipeline) -> None:
        self.pipeline = pipeline

    def __len__(self) -> int:
        return len(self.pipeline.images)

    def __getitem__(self, key: tuple[int, int]) -> Batch | StarshiftError:
        return self.__getitems__([key])

    def __getitems__(self, keys: Keys) -> Batch | StarshiftError:
        indices = np.array([index for index, _ in keys], np.int64)
        seeds = np.array([seed for _, seed in keys], np.uint64)
        try:
            image, indices, bad = self.pipeline(indices, seeds)
        except StarshiftError as error:
            return error  # raised in the main process, without the worker's traceback
        targets = [self.pipeline.images.targets[i] for i in indices]
        return Batch(image, torch.tensor(targets, dtype=torch.int64), torch.from_numpy(indices), bad)


def _as_it_is(batch: Any) -> Any:
    return batch


class ImageLoader(DataLoader[Any]):
    """A DataLoader of :class:`Batch`. Workers use one thread each, leave Ctrl-C to the main process and outlive an
    epoch."""

    def __init__(
        self, pipeline: TrainPipeline | EvalPipeline, sampler: TrainBatchSampler | EvalBatchSampler, workers: int
    ) -> None:
        if workers < 0:
            raise StarshiftError(f"workers must not be negative, not {workers}")
        self._at_exit: Any = None
        super().__init__(
            _BatchDataset(pipeline),
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_start_worker,
            persistent_workers=workers > 0,
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        iterator = super().__iter__()
        if self.num_workers and iterator is not self._at_exit:
            self._at_exit = iterator
            # After the iterator's own exit handler, so that it runs before that: told to, workers leave at once.
            atexit.register(_shut_down, weakref.ref(iterator))
        for batch in iterator:
            if isinstance(batch, StarshiftError):
                raise batch
            yield batch


def _shut_down(iterator: weakref.ref[Any]) -> None:
    found = iterator()
    if found is not None:
        found._shutdown_workers()


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):  # told to end, as all the group is, serve on while the main process ends its step
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, _leave_soon)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, _leave_soon)


def _leave_soon(number: int, frame: FrameType | None) -> None:
    signal.alarm(_WORKER_GRACE_S)


def train_loader(
    images: ImageSet,
    preprocessing: Preprocessing,
    augment: Augment,
    *,
    batch_size: int,
    workers: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    aug_repeats: int = 0,
    drop_last: bool = True,
) -> ImageLoader:
    """Shuffled, augmented batches of one rank. ``loader.batch_sampler.set_epoch(epoch, skip_batches=0)`` chooses
    where to start.

    Args:
        images: the set; small images (such as CIFAR's) are decoded once, here, and kept.
        preprocessing: the network's size, mean and std, and number of channels.
        augment: what happens at random.
        batch_size: images of this rank's batches. A set of fewer images gives one smaller batch.
        workers: processes that decode; 0 decodes in this one. Images kept in memory are served by this one in any case
            where that is faster than a worker could hand them over: with nothing but padded crop and mirroring to do.
        seed, rank, world_size, aug_repeats: see :class:`TrainBatchSampler`. All ranks have the same number of batches.
        drop_last: leave out a last batch that is not full.

    Raises:
        StarshiftError: arguments out of range; from the iteration, where 10 images in a row cannot be read.
    """
    _check_channels(images, preprocessing)
    images.load_small()
    pillow_augmentation(augment, preprocessing)  # refuses a wrong auto-augment string now, not in a worker
    sampler = TrainBatchSampler(
        len(images),
        batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        aug_repeats=aug_repeats,
        drop_last=drop_last,
    )
    pipeline = TrainPipeline(images, preprocessing, augment)
    return ImageLoader(pipeline, sampler, min(workers, 0) if pipeline.in_bulk else workers)


def eval_loader(
    images: ImageSet, preprocessing: Preprocessing, *, batch_size: int, workers: int, rank: int = 0, world_size: int = 1
) -> ImageLoader:
    """Every image once, in order, through the path of :func:`starshift.data.load_image`; see
    :class:`EvalBatchSampler` for ranks.

    Raises:
        StarshiftError: arguments out of range.
    """
    _check_channels(images, preprocessing)
    images.load_small()
    return ImageLoader(
        EvalPipeline(images, preprocessing),
        EvalBatchSampler(len(images), batch_size, rank=rank, world_size=world_size),
        min(workers, 0) if images.pixels is not None else workers,
    )


def _check_channels(images: ImageSet, preprocessing: Preprocessing) -> None:
    if images.channels != preprocessing.channels:
        raise StarshiftError(
            f"the images are opened with {images.channels} channel(s), the preprocessing has {preprocessing.channels}: "
            f"open the data with channels={preprocessing.channels}"
        )
