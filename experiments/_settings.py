# SPDX-License-Identifier: Apache-2.0
"""Training settings that several experiments share, and how they differ from the papers'."""

from __future__ import annotations

from typing import Any

CIFAR_CROPS: dict[str, Any] = {"scale": None, "crop_padding": 4, "smoothing": 0.0}

DEMONET: dict[str, Any] = {
    **CIFAR_CROPS,
    "epochs": 3,
    "batch_size": 128,
    "opt": "adamw",
    "lr": 6e-3,
    "weight_decay": 0.05,
    "clip_grad": 1.0,
    "sched": "onecycle",
    "pct_start": 0.3,
}
DEMONET_SETTING = (
    "DemoNet with patches of 4 pixels on CIFAR-10 (JPEG) at 32 pixels, 3 epochs of AdamW on one cycle; the paper trains"
    " on ImageNet-1k at 224 pixels with patches of 16 for 300 epochs"
)

STARNET: dict[str, Any] = {**DEMONET, "lr": 4e-3, "clip_grad": 5.0}

SHIFT: dict[str, Any] = {
    **CIFAR_CROPS,
    "epochs": 4,
    "batch_size": 128,
    "opt": "sgd",
    "lr": 0.2,
    "weight_decay": 5e-4,
    "clip_grad": 5.0,
    "sched": "onecycle",
}
SHIFT_SETTING = (
    "CIFAR-10 (JPEG), SGD on one cycle for {epochs} epochs, the same for every network; the paper trains for 164 epochs"
    " in steps on the original pixels and gives the best epoch on the test images, we the last"
)
