# SPDX-License-Identifier: Apache-2.0
"""Images in: decoding, data sets, augmentation and loaders.

>>> from starshift.data import open_data, train_loader, Augment
>>> from starshift.preprocessing import Preprocessing
>>> data = open_data("digits")  # or a folder of class folders
>>> loader = train_loader(data.train, Preprocessing((32, 32)), Augment(), batch_size=64, workers=0, seed=0)
>>> next(iter(loader)).image.shape
torch.Size([64, 3, 32, 32])
"""

from __future__ import annotations

from starshift.data.augment import Augment
from starshift.data.decode import BadImageError, decode_image
from starshift.data.fingerprint import Fingerprint
from starshift.data.images import ImageSet
from starshift.data.loader import Batch, ImageLoader, eval_loader, train_loader
from starshift.data.sources import DataSource, open_data, open_eval_data
from starshift.data.transforms import denormalise, load_image

__all__ = [
    "Augment",
    "BadImageError",
    "Batch",
    "DataSource",
    "Fingerprint",
    "ImageLoader",
    "ImageSet",
    "decode_image",
    "denormalise",
    "eval_loader",
    "load_image",
    "open_data",
    "open_eval_data",
    "train_loader",
]
