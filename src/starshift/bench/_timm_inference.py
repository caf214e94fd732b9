# SPDX-License-Identifier: Apache-2.0
"""The peer of ``starshift bench predict``: a folder of images through timm's own dataset, loader and network.

    python _timm_inference.py MODEL FOLDER OUT.csv

The steps and defaults are those of ``inference.py`` in timm's repository: batches of 256, two worker processes, the
network in evaluation mode as it was made, the five likeliest classes of each file. It knows nothing of starshift.
"""

from __future__ import annotations

import csv
import sys

import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.models import create_model


def main(name: str, folder: str, out: str) -> None:
    model = create_model(name).eval()
    dataset = create_dataset(root=folder, name="")
    config = resolve_data_config({}, model=model)
    loader = create_loader(dataset, batch_size=256, num_workers=2, device=torch.device("cpu"), **config)
    indices, shares = [], []
    with torch.no_grad():
        for images, _ in loader:
            found, index = model(images).softmax(-1).topk(5)
            indices.append(index.cpu())
            shares.append(found.cpu())
    with open(out, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        for path, index, share in zip(dataset.filenames(), torch.cat(indices), torch.cat(shares), strict=True):
            rows.writerow((path, *index.tolist(), *share.tolist()))


if __name__ == "__main__":
    main(*sys.argv[1:])
