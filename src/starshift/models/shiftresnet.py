# SPDX-License-Identifier: Apache-2.0
"""ShiftResNet for CIFAR (Wu et al., "Shift", CVPR 2018): ResNet whose 3x3 convolutions are shift modules.

``shiftresnet20`` has expansion 1, as the reference code's default; the paper compares 1, 3, 6 and 9.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from starshift.layers import CSC, ShiftConv2d
from starshift.layers.shift import Assignment, per_module
from starshift.models._base import ImageModel
from starshift.models._cifar import DEPTHS, CifarResNet
from starshift.models._registry import CIFAR, Variant
from starshift.ops import interleaved_offsets, offsets_permutation


class ShiftResNet(CifarResNet):
    """Three groups of conv-shift-conv modules.

    Args:
        depth: modules in each group.
        expansion: E, middle channels over a module's output channels.
        kernel_size, dilation: of the shifts.
        offsets: ``grouped`` or ``interleaved`` (as the reference code; its checkpoints load into either), or one entry
            for each module, in order: a name, or runs [channels, dy, dx] for its middle channels.
        relu: ``branch`` or ``sum``, where a module's second ReLU stands.
        sc2: SC² modules (a shift before the first 1x1 convolution too).
        num_classes, in_chans, drop_rate, drop_path_rate, global_pool: as everywhere.
        shift: ``fixed``, or learned within the kernel's reach: ``active`` or ``sparse``.
    """

    def __init__(
        self,
        depth: int = 3,
        expansion: float = 1,
        kernel_size: int = 3,
        dilation: int = 1,
        offsets: str | Sequence[Assignment] = "grouped",
        relu: str = "branch",
        sc2: bool = False,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
        shift: str = "fixed",
    ) -> None:
        assignments: Iterator[Assignment] = iter(per_module(offsets, 3 * depth))

        def block(in_channels: int, out_channels: int, stride: int, drop_path: float) -> CSC:
            moves = (kernel_size, dilation, next(assignments))
            return CSC(in_channels, out_channels, stride, expansion, *moves, relu, sc2, drop_path, shift)

        super().__init__(block, depth, 1, num_classes, in_chans, drop_rate, drop_path_rate, global_pool)
        self.dilation = dilation

    @classmethod
    def convert_state_dict(cls, state: dict[str, Tensor], model: ImageModel) -> dict[str, Tensor]:
        """Names, and the reference code's interleaved channels put into the order of this model's shifts."""
        if "layer1.0.conv1.weight" not in state:
            return state
        state = super().convert_state_dict(state, model)
        for name, module in model.named_modules():
            if isinstance(module, CSC) and isinstance(module.conv2.conv, ShiftConv2d):
                _reorder(state, name, module.conv2.conv, model.dilation)  # type: ignore[arg-type]
        return state


def _reorder(state: dict[str, Tensor], module: str, conv: ShiftConv2d, dilation: int) -> None:
    """Permute a module's middle channels: rows of conv1 and its batch norm, columns of conv2."""
    taps = len({(dy, dx) for _, dy, dx in conv.offsets})
    kernel_size = round(taps**0.5)
    if kernel_size**2 != taps or kernel_size % 2 == 0 or f"{module}.conv2.conv.weight" not in state:
        return
    order = offsets_permutation(interleaved_offsets(conv.in_channels, kernel_size, dilation), conv.offsets)
    for key in [k for k in state if k.startswith(f"{module}.conv1.")]:
        if state[key].dim() > 0 and state[key].shape[0] == conv.in_channels:
            state[key] = state[key][order]
    key = f"{module}.conv2.conv.weight"
    if state[key].shape[1] == conv.in_channels:
        state[key] = state[key][:, order]


_TOP1 = {
    20: {"cifar10": (85.78, 89.56, 91.07, 91.79), "cifar100": (55.05, 65.83, 69.73, 70.77)},
    56: {"cifar10": (89.69, 92.48, 93.49, 93.17), "cifar100": (63.20, 69.77, 72.33, 73.43)},
    110: {"cifar10": (90.67, 92.42, 93.03, 93.36), "cifar100": (68.01, 72.10, 73.17, 73.71)},
}

VARIANTS = tuple(
    Variant(
        f"shiftresnet{number}",
        ShiftResNet,
        {"depth": depth},
        **CIFAR,
        published_top1={
            f"{data} E={e}": top1
            for data, values in _TOP1[number].items()
            for e, top1 in zip((1, 3, 6, 9), values, strict=True)
        },
        paper="Shift (arXiv 1711.08141)",
    )
    for number, depth in DEPTHS.items()
)
