# SPDX-License-Identifier: Apache-2.0
"""A small saved network and photographs that several folders of tests use; made once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

CLASSES = ["cat", "dog", "eel"]
MakePhotos = Callable[[Path, int], list[Path]]


def _photo(path: Path, seed: int, size: tuple[int, int] = (48, 40)) -> Path:
    """A JPEG of coarse random colours, (width, height) pixels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR).save(path, quality=95)
    return path


@pytest.fixture(scope="session")
def make_photos() -> MakePhotos:
    """``make_photos(folder, n)`` writes n JPEGs of odd sizes and returns their paths in order."""
    return lambda folder, n: [_photo(folder / f"{i:03d}.jpg", i, (37 + 3 * i, 45)) for i in range(n)]


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: three classes, 32 pixels, random weights, batch norms with statistics of their own."""
    from starshift.models import create_model, save_model
    from starshift.preprocessing import Preprocessing

    torch.manual_seed(0)
    model = create_model("starnet_s050", num_classes=3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    folder = tmp_path_factory.mktemp("small") / "model"
    preprocessing = Preprocessing((32, 32), crop_pct=0.9)
    save_model(model, folder, name="starnet_s050", model_args={}, classes=CLASSES, preprocessing=preprocessing)
    return folder


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a class, five photographs each, and one file of the class ``dog`` that is no image."""
    root = tmp_path_factory.mktemp("labelled")
    for c, name in enumerate(CLASSES):
        for i in range(5):
            _photo(root / name / f"{i}.jpg", 10 * c + i)
    (root / "dog" / "broken.jpg").write_bytes(b"no image at all")
    return root


@pytest.fixture(scope="session")
def onnx_file(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``small_model`` as an ONNX file."""
    from starshift.deploy import export

    return export(small_model, "onnx", tmp_path_factory.mktemp("onnx") / "small.onnx")
