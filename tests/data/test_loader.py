# SPDX-License-Identifier: Apache-2.0
"""The loaders: what is random is a function of seed, epoch and position, whatever workers, ranks and interruptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from starshift.data import Augment, Batch, ImageLoader, eval_loader, load_image, open_data, train_loader
from starshift.data.images import ArrayImages, ImageSet
from starshift.errors import StarshiftError
from starshift.preprocessing import Preprocessing
from tests.data.conftest import MakeFolder

PREPROCESSING = Preprocessing((24, 24))
PADDED = Augment(scale=None, crop_padding=3)
HEAVY = Augment(scale=(0.3, 1.0), color_jitter=0.3, reprob=0.5)


@pytest.fixture
def photos(make_folder: MakeFolder) -> ImageSet:
    return open_data(make_folder({"train/a": 20, "train/b": 17, "val/a": 2, "val/b": 2})).train


def numbered(count: int, size: int = 24) -> ArrayImages:
    """Images in memory; every pixel of image i is i."""
    pixels = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(size, 1).repeat(size, 2).repeat(3, 3)
    return ArrayImages(pixels, [i % 2 for i in range(count)], ["even", "odd"], [f"n/{i}" for i in range(count)])


def epoch(loader: ImageLoader, number: int, skip: int = 0) -> list[Batch]:
    loader.batch_sampler.set_epoch(number, skip)
    return list(loader)


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.image, y.image)
        and torch.equal(x.target, y.target)
        and torch.equal(x.index, y.index)
        and x.bad == y.bad
        for x, y in zip(a, b, strict=True)
    )


def indices(batches: list[Batch]) -> list[int]:
    return list(chain.from_iterable(b.index.tolist() for b in batches))


@pytest.mark.parametrize("augment", [PADDED, HEAVY], ids=["padded", "heavy"])
def test_an_epoch_is_the_same_for_any_workers_and_resumed_anywhere(photos: ImageSet, augment: Augment) -> None:
    def loader(workers: int) -> ImageLoader:
        return train_loader(photos, PREPROCESSING, augment, batch_size=8, workers=workers, seed=5)

    plain = loader(0)
    first, second = epoch(plain, 0), epoch(plain, 1)
    assert len(plain) == len(first) == 37 // 8
    assert not same(first, second) and indices(first) != indices(second)
    assert same(epoch(plain, 0), first)
    assert same(epoch(plain, 1, skip=2), second[2:])
    parallel = loader(2)
    assert same(epoch(parallel, 1, skip=3), second[3:])
    assert same(epoch(parallel, 0), first) and same(epoch(parallel, 1), second)  # the same workers, which live on
    iterator = iter(parallel)
    next(iterator)  # left in the middle of an epoch
    assert same(epoch(parallel, 1), second)
    other = train_loader(photos, PREPROCESSING, augment, batch_size=8, workers=0, seed=6)
    assert not same(epoch(other, 0), first)


def test_a_batch_is_what_it_says(photos: ImageSet) -> None:
    batch = epoch(train_loader(photos, PREPROCESSING, HEAVY, batch_size=10, workers=0, seed=0), 0)[0]
    assert batch.image.shape == (10, 3, 24, 24) and batch.image.dtype == torch.float32
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert batch.target.dtype == batch.index.dtype == torch.int64 and batch.bad == []
    assert batch.target.tolist() == [photos.targets[i] for i in batch.index]


def test_every_image_comes_once_an_epoch() -> None:
    loader = train_loader(numbered(100), PREPROCESSING, PADDED, batch_size=16, workers=0, seed=0, drop_last=False)
    batches = epoch(loader, 3)
    assert len(batches) == len(loader) == 7 and sorted(indices(batches)) == list(range(100))
    assert len(epoch(train_loader(numbered(100), PREPROCESSING, PADDED, batch_size=16, workers=0, seed=0), 3)) == 6


def test_the_global_generators_are_left_alone(photos: ImageSet) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    epoch(train_loader(photos, PREPROCESSING, HEAVY, batch_size=8, workers=0, seed=0), 0)
    state = torch.get_rng_state()
    # The DataLoader itself draws one number to seed its workers, which nothing here uses.
    torch.manual_seed(1)
    torch.empty((), dtype=torch.int64).random_()
    assert torch.equal(state, torch.get_rng_state()) or torch.equal(state, before)


def test_ranks_divide_the_epoch_and_its_randomness() -> None:
    def batches(rank: int, world: int, size: int) -> list[Batch]:
        loader = train_loader(
            numbered(50), PREPROCESSING, HEAVY, batch_size=size, workers=0, seed=2, rank=rank, world_size=world
        )
        return epoch(loader, 1)

    alone, ranks = batches(0, 1, 12), [batches(r, 3, 4) for r in range(3)]
    assert [len(b) for b in ranks] == [4, 4, 4] == [len(alone)] * 3
    for step, whole in enumerate(alone):
        for rank in range(3):
            assert torch.equal(ranks[rank][step].image, whole.image[rank::3])
    assert len(set(indices(list(chain(*ranks))))) == 48


def test_repeated_augmentation() -> None:
    images = numbered(40)
    augment = Augment(scale=None, crop_padding=6)
    loader = train_loader(images, PREPROCESSING, augment, batch_size=40, workers=0, seed=0, aug_repeats=3)
    (batch,) = epoch(loader, 0)
    counts = Counter(batch.index.tolist())
    assert len(batch.index) == 40 and len(counts) == 14 and max(counts.values()) == 3
    assert not torch.equal(batch.image[0], batch.image[1]) and batch.index[0] == batch.index[1]
    ranks = [
        train_loader(
            images, PREPROCESSING, augment, batch_size=4, workers=0, seed=0, rank=r, world_size=2, aug_repeats=2
        )
        for r in (0, 1)
    ]
    assert indices(epoch(ranks[0], 0)) == indices(epoch(ranks[1], 0))


def test_a_set_smaller_than_a_batch() -> None:
    (batch,) = epoch(train_loader(numbered(5), PREPROCESSING, PADDED, batch_size=64, workers=0, seed=0), 0)
    assert sorted(batch.index.tolist()) == [0, 1, 2, 3, 4]


def test_evaluation_is_load_image_in_order(photos: ImageSet) -> None:
    for workers in (0, 2):
        batches = list(eval_loader(photos, PREPROCESSING, batch_size=10, workers=workers))
        assert [len(b.target) for b in batches] == [10, 10, 10, 7] and indices(batches) == list(range(37))
        for batch in batches:
            for image, index, target in zip(batch.image, batch.index.tolist(), batch.target.tolist(), strict=True):
                assert torch.equal(image, load_image(photos.name(index), PREPROCESSING))
                assert target == photos.targets[index]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_evaluation_on_ranks_has_no_duplicates(world: int) -> None:
    loaders = [
        eval_loader(numbered(11), PREPROCESSING, batch_size=4, workers=0, rank=r, world_size=world)
        for r in range(world)
    ]
    assert sorted(chain.from_iterable(indices(list(loader)) for loader in loaders)) == list(range(11))


@pytest.mark.parametrize("size", [8, 24, 40])
def test_small_images_kept_in_memory_are_those_of_the_files(tmp_path: Path, photo: Image.Image, size: int) -> None:
    for number in range(12):
        folder = tmp_path / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        photo.crop((number * 20, 100, number * 20 + size, 100 + size)).save(folder / f"{number}.png")
    data = open_data(tmp_path, val_fraction=0.5)
    assert data.native_size == (size, size)
    (batch,) = eval_loader(data.val, PREPROCESSING, batch_size=99, workers=0)
    assert data.val.pixels is not None and data.val.pixels.shape == (6, size, size, 3)
    for image, index in zip(batch.image, batch.index.tolist(), strict=True):
        assert torch.equal(image, load_image(data.val.name(index), PREPROCESSING))
    for augment in (PADDED, Augment()):
        kept = epoch(train_loader(data.train, PREPROCESSING, augment, batch_size=3, workers=0, seed=0), 0)
        fresh = open_data(tmp_path, val_fraction=0.5).train
        fresh.load_small = lambda: False  # type: ignore[method-assign]
        assert same(kept, epoch(train_loader(fresh, PREPROCESSING, augment, batch_size=3, workers=0, seed=0), 0))


def test_large_or_uneven_images_are_not_kept(photos: ImageSet, tmp_path: Path, photo: Image.Image) -> None:
    assert not photos.load_small() and photos.pixels is None
    small = tmp_path / "small"
    for name in "ab":
        (small / name).mkdir(parents=True)
        for number in range(40):
            photo.resize((20, 20)).save(small / name / f"{number:02}.png")
    uneven = open_data(small, val_fraction=0.03).train
    photo.resize((21, 20)).save(uneven.name(77))  # where no probe of the size falls
    assert uneven.native_size() == (20, 20) and not uneven.load_small() and uneven.pixels is None
    assert len(indices(epoch(train_loader(uneven, PREPROCESSING, PADDED, batch_size=13, workers=0, seed=0), 0))) == 78


def spoil(images: ImageSet, *numbers: int) -> None:
    for number in numbers:
        path = Path(images.name(number))
        path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_replaced_in_training_and_reported(photos: ImageSet, workers: int) -> None:
    spoil(photos, 3, 30)
    Path(photos.name(7)).unlink()
    loader = train_loader(photos, PREPROCESSING, HEAVY, batch_size=37, workers=workers, seed=0)
    (batch,) = epoch(loader, 0)
    assert len(batch.target) == 37 and not {3, 7, 30} & set(batch.index.tolist())
    assert batch.target.tolist() == [photos.targets[i] for i in batch.index]
    reasons = dict(batch.bad)
    assert set(reasons) == {photos.name(i) for i in (3, 7, 30)}
    assert "No such file" in reasons[photos.name(7)] and "image" in reasons[photos.name(3)]
    assert same(epoch(loader, 0), [batch])


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_left_out_of_evaluation_and_reported(photos: ImageSet, workers: int) -> None:
    spoil(photos, 0, 1, 2, 3, 5)
    batches = list(eval_loader(photos, PREPROCESSING, batch_size=4, workers=workers))
    assert indices(batches) == [4, *range(6, 37)]
    assert [len(b.bad) for b in batches[:3]] == [4, 1, 0]
    assert batches[0].image.shape == (0, 3, 24, 24) and batches[0].target.shape == (0,)
    assert batches[1].bad[0][0] == photos.name(5)


def test_bad_small_images(tmp_path: Path, photo: Image.Image) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(20):
            photo.resize((20, 20)).save(tmp_path / name / f"{number:02}.jpg")
    images = open_data(tmp_path, val_fraction=0.1).train
    spoil(images, 5, 6)
    (batch,) = epoch(train_loader(images, PREPROCESSING, PADDED, batch_size=36, workers=0, seed=0), 0)
    assert images.pixels is not None and set(images.bad) == {5, 6}
    assert len(batch.target) == 36 and not {5, 6} & set(batch.index.tolist())
    assert {name for name, _ in batch.bad} == {images.name(5), images.name(6)}
    (batch,) = eval_loader(images, PREPROCESSING, batch_size=99, workers=0)
    assert len(batch.target) == 34 and len(batch.bad) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_data_set_ends_with_one_message(photos: ImageSet, workers: int) -> None:
    spoil(photos, *range(37))
    with pytest.raises(
        StarshiftError, match=r"^11 images in a row cannot be read, the last of them .*is the data broken\?$"
    ):
        epoch(train_loader(photos, PREPROCESSING, PADDED, batch_size=8, workers=workers, seed=0), 0)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": -1}, {"rank": 2}, {"rank": 0, "world_size": 101}])
def test_wrong_arguments_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(StarshiftError):
        train_loader(numbered(9), PREPROCESSING, PADDED, **{"batch_size": 4, "workers": 0, "seed": 0, **options})  # type: ignore[arg-type]


def test_channels_must_agree() -> None:
    grey = Preprocessing((24, 24), mean=(0.5,), std=(0.5,))
    for call in (
        lambda: train_loader(numbered(9), grey, PADDED, batch_size=4, workers=0, seed=0),
        lambda: eval_loader(numbered(9), grey, batch_size=4, workers=0),
    ):
        with pytest.raises(StarshiftError, match="channels=1"):
            call()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", 1)])
def test_a_signal_to_all_processes_leaves_the_workers_quiet_and_serving(
    tmp_path: Path, make_folder: MakeFolder, number: int
) -> None:
    """As Ctrl-C in a terminal, its closing and a scheduler's SIGTERM do: the main process decides, and is served until
    it has."""
    root = make_folder({"train/a": 20, "train/b": 20, "val/a": 1, "val/b": 1})
    code = f"""
        import signal, sys
        from starshift.data import Augment, open_data, train_loader
        from starshift.preprocessing import Preprocessing
        stop = []
        signal.signal({int(number)}, lambda *_: stop.append(1))
        images, size = open_data({str(root)!r}).train, Preprocessing((32, 32))
        loader = train_loader(images, size, Augment(), batch_size=4, workers=2, seed=0)
        left = 12
        for epoch in range(100000):
            loader.batch_sampler.set_epoch(epoch)
            for batch in loader:
                print("batch", flush=True)
                left -= len(stop) > 0
                if not left:
                    print("done", flush=True)
                    sys.exit(0)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "batch\n"
    time.sleep(0.3)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out.endswith("done\n"), err
    assert err == ""
