# SPDX-License-Identifier: Apache-2.0
"""Which channel moves where: runs ``(channels, dy, dx)``, so many neighbouring channels that read (y + dy, x + dx)."""

from __future__ import annotations

from itertools import groupby

from starshift.errors import StarshiftError

Offsets = tuple[tuple[int, int, int], ...]


def grouped_offsets(channels: int, kernel_size: int = 3, dilation: int = 1) -> Offsets:
    """Contiguous groups, one for each of the ``kernel_size**2`` displacements; the one that stays takes the remainder.

    The native form: neighbouring channels that move together are what fast kernels want (paper, section 3.1).

    Raises:
        StarshiftError: channels or dilation below 1, or an even kernel size.

    Example:
        >>> from starshift.ops import grouped_offsets
        >>> grouped_offsets(20)[3:6]
        ((2, 0, -1), (4, 0, 0), (2, 0, 1))
    """
    displacements = _displacements(channels, kernel_size, dilation)
    size, remainder = divmod(channels, len(displacements))
    sizes = [size + (remainder if d == (0, 0) else 0) for d in displacements]
    return tuple((n, dy, dx) for n, (dy, dx) in zip(sizes, displacements, strict=True) if n)


def interleaved_offsets(channels: int, kernel_size: int = 3, dilation: int = 1) -> Offsets:
    """As the reference code assigns them: channel c moves by ``dx = s(c % k - k//2)``, ``dy = s((c // k) % k - k//2)``.

    Only the first ``(C // k**2) * k**2`` channels move; the rest stay.

    Raises:
        StarshiftError: as :func:`grouped_offsets`.
    """
    displacements = _displacements(channels, kernel_size, dilation)
    moving = channels - channels % len(displacements)
    each = [displacements[c % len(displacements)] if c < moving else (0, 0) for c in range(channels)]
    return merge_runs(tuple((1, dy, dx) for dy, dx in each))


def offsets_permutation(source: Offsets, target: Offsets) -> list[int]:
    """The order of channels that turns a network with ``source`` offsets into one with ``target`` offsets.

    Let ``p`` be the result. Take channel ``p[i]`` of the old order as channel ``i`` of the new: permute the rows (and
    batch norm) of the convolution before the shift and the input columns of the one after it by ``p``, and the network
    computes the same.

    Raises:
        StarshiftError: the two do not move the same number of channels to each displacement.
    """
    waiting: dict[tuple[int, int], list[int]] = {}
    for channel, displacement in enumerate(per_channel(source)):
        waiting.setdefault(displacement, []).append(channel)
    for displacements in waiting.values():
        displacements.reverse()
    wanted = per_channel(target)
    order = [waiting[d].pop() for d in wanted if waiting.get(d)]
    if len(order) != len(wanted) or any(waiting.values()):
        raise StarshiftError(
            "the two assignments move different numbers of channels to some displacement: no permutation converts them"
        )
    return order


def per_channel(offsets: Offsets) -> list[tuple[int, int]]:
    """(dy, dx) of every channel."""
    return [(dy, dx) for n, dy, dx in offsets for _ in range(n)]


def merge_runs(offsets: Offsets) -> Offsets:
    """Neighbouring runs of one displacement made one."""
    return tuple(
        (sum(n for n, _, _ in runs), dy, dx)
        for (dy, dx), group in groupby(offsets, lambda r: r[1:])
        for runs in [list(group)]
    )


def negate(offsets: Offsets) -> Offsets:
    """The opposite displacements: the shift's backward."""
    return tuple((n, -dy, -dx) for n, dy, dx in offsets)


def flatten(offsets: Offsets) -> list[int]:
    """``[channels, dy, dx, channels, dy, dx, ...]``: the form that operator schemas take, and kernels trust.

    Raises:
        StarshiftError: a run of fewer than 0 channels.
    """
    if any(n < 0 for n, _, _ in offsets):
        raise StarshiftError(f"offsets count channels, and none can be negative: {offsets}")
    return [value for run in offsets for value in run]


def unflatten(values: list[int]) -> Offsets:
    return tuple(zip(values[0::3], values[1::3], values[2::3], strict=True))


def _displacements(channels: int, kernel_size: int, dilation: int) -> list[tuple[int, int]]:
    if channels < 1 or dilation < 1 or kernel_size < 1 or kernel_size % 2 == 0:
        raise StarshiftError(
            "a shift needs channels >= 1, an odd kernel size and dilation >= 1, "
            f"not {channels}, {kernel_size} and {dilation}"
        )
    steps = [dilation * (i - kernel_size // 2) for i in range(kernel_size)]
    return [(dy, dx) for dy in steps for dx in steps]
