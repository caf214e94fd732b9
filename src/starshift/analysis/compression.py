# SPDX-License-Identifier: Apache-2.0
"""Weights of one byte: int8 with one scale an output channel, symmetric, for convolutions and linear layers.

What is quantised are the weights alone; activations, biases and batch norms stay float32. Fold batch norms first
(:func:`starshift.layers.fold_batchnorm`): it is what runs on the device, and their values go out of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

SCALE = ".int8_scale"
LEVELS = 127


@torch.no_grad()
def pack_int8(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors as they would be stored: weights int8 with their scales, the rest as it is.

    ``q = round(w / s)`` with ``s = max |w| / 127`` over each output channel, so no weight moves by more than s / 2.

    Returns:
        By the names of the state dict; ``<name>.int8_scale`` holds a weight's scales (channels,). Counters of batch
        norm, which inference does not read, are left out.
    """
    weights = {
        f"{name}.weight".lstrip(".") for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))
    }
    packed: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name not in weights:
            if not name.endswith("num_batches_tracked"):
                packed[name] = value
            continue
        rows = value.flatten(1)
        scale = rows.abs().amax(1) / LEVELS
        steps = (rows / torch.where(scale > 0, scale, 1.0)[:, None]).round()
        packed[name] = steps.clamp(-LEVELS, LEVELS).to(torch.int8).view(value.shape)
        packed[name + SCALE] = scale
    return packed


def unpack_int8(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict in floating point again: int8 weights times their scales."""
    found = {}
    for name, value in packed.items():
        if name + SCALE in packed:
            scale = packed[name + SCALE]
            found[name] = (value.flatten(1).to(scale) * scale[:, None]).view(value.shape)
        elif not name.endswith(SCALE):
            found[name] = value
    return found


def int8_model(model: nn.Module) -> nn.Module:
    """A copy of ``model`` that computes with the weights which :func:`pack_int8` stores."""
    copy = deepcopy(model)
    counters = {name: v for name, v in copy.state_dict().items() if name.endswith("num_batches_tracked")}
    copy.load_state_dict({**unpack_int8(pack_int8(copy)), **counters})
    return copy


def size_in_bytes(model: nn.Module | Mapping[str, Tensor]) -> int:
    """Bytes of a model's tensors, or of packed ones; without batch norms' counters.

    Example:
        >>> import torch
        >>> from starshift.analysis import pack_int8, size_in_bytes
        >>> layer = torch.nn.Linear(100, 10)
        >>> size_in_bytes(layer), size_in_bytes(pack_int8(layer))  # 1000 weights, 10 biases, 10 scales
        (4040, 1080)
    """
    tensors = model.state_dict() if isinstance(model, nn.Module) else model
    return sum(t.numel() * t.element_size() for name, t in tensors.items() if not name.endswith("num_batches_tracked"))
