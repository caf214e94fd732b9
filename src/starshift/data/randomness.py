# SPDX-License-Identifier: Apache-2.0
"""Random numbers as a pure function of where they are used.

Every draw is a hash of (seed, epoch, position in the epoch, number of the draw), never the next value of a shared
generator. So an epoch is the same however many workers read it, whether or not the workers live on, and from wherever
it is resumed. The hash is SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA
2014, section 4), vectorised; unlike NumPy's and PyTorch's generators it gives the same values in every version.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: 64 bits in, 64 well-mixed bits out."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hashed(*words: int | NDArray[np.integer]) -> NDArray[np.uint64]:
    """Hash a sequence of 64-bit integers (arrays broadcast) to uint64, at least one-dimensional."""
    state = np.zeros(1, np.uint64)
    for word in words:
        part = np.atleast_1d(np.asarray(word)).astype(np.int64).astype(np.uint64)
        state = _mix((state + _GOLDEN) ^ _mix(part + _GOLDEN))
    return state


def uniforms(seeds: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """``count`` draws in [0, 1) for each of ``seeds`` (N,): float64 (N, count)."""
    steps = (np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)[None, :]
    return (_mix(seeds[:, None] + steps) >> np.uint64(11)) * 2.0**-53


def permutation(count: int, *words: int) -> NDArray[np.int64]:
    """A random order of ``range(count)`` that depends on ``words`` alone: int64 (count,)."""
    return np.argsort(hashed(*words, np.arange(count)), kind="stable")


def seed_global(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (CPU), which foreign code draws from."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)


@contextmanager
def global_state_kept() -> Iterator[None]:
    """Put the global generators of Python, NumPy and PyTorch (CPU) back to where they were, after the block."""
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)
