# SPDX-License-Identifier: Apache-2.0
"""A data set of 60 tiny images and a network small enough to train on them in a second."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from starshift.training import Run, train

TINY: dict[str, Any] = {
    "model": "shiftresnet20",
    "model_args": {"expansion": 1},
    "epochs": 2,
    "batch_size": 8,
    "workers": 0,
    "quiet": True,
}
Train = Callable[..., Run]


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 20 images of 8x8 pixels, told apart by their colour: 48 to train on, 12 to validate on."""
    root = tmp_path_factory.mktemp("tiny")
    random = np.random.default_rng(0)
    for colour, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir()
        for i in range(20):
            pixels = random.integers(0, 120, (8, 8, 3), dtype=np.uint8)
            pixels[:, :, colour] += 100
            Image.fromarray(pixels).save(root / name / f"{i:02d}.png")
    return root


@pytest.fixture
def tiny_train(tiny_data: Path, tmp_path: Path) -> Train:
    """``train`` with quick settings for the tiny data; ``out`` is a name below tmp_path."""

    def run(out: str = "run", **settings: Any) -> Run:
        return train(**{"data": str(tiny_data), **TINY, "out": tmp_path / out, **settings})

    return run


@pytest.fixture
def with_a_terminal() -> Iterator[None]:
    """As a shell starts a program, whatever started the tests: SIGHUP is not ignored."""
    if not hasattr(signal, "SIGHUP"):
        pytest.skip("there is no such signal here")
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
