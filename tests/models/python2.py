# SPDX-License-Identifier: Apache-2.0
"""Writes files as ``torch.save`` of PyTorch 0.3 under Python 2.7 did: whole modules, byte strings, storages at the end.

The opcodes are put down by hand, since Python 3's pickle would write its own strings and module names.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class Global:
    """A class or function by module and name."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """``function(*args)``, then ``state`` handed to ``__setstate__`` or ``__dict__``."""

    function: Any
    args: tuple
    state: Any = None
    new: bool = False  # made by __new__ (NEWOBJ) rather than by a call (REDUCE)


@dataclass(frozen=True)
class Persistent:
    pid: tuple


class Stream:
    """One file: pickles of header, object and storage keys, then the storages."""

    def __init__(self, storage_type: Global = Global("torch.cuda", "FloatStorage")) -> None:
        self.storage_type = storage_type
        self.storages: dict[str, np.ndarray] = {}
        self.sources: set[str] = set()

    def write(self, path: Path, value: Any) -> None:
        """``torch.save(value, path)``."""
        sizes = {"short": 2, "int": 4, "long": 4}
        machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
        body = b"".join(self.dumps(part) for part in (MAGIC_NUMBER, 1001, machine, value))
        body += self.dumps(list(self.storages))
        for array in self.storages.values():
            body += struct.pack("<q", array.size) + array.astype("<f4").tobytes()
        path.write_bytes(body)

    def dumps(self, value: Any) -> bytes:
        return b"\x80\x02" + self.encode(value) + b"."

    def encode(self, value: Any) -> bytes:  # one branch a type
        if value is None or isinstance(value, bool):
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        if isinstance(value, int):
            if -(2**31) <= value < 2**31:
                return b"J" + struct.pack("<i", value)
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data
        if isinstance(value, float):
            return b"G" + struct.pack(">d", value)
        if isinstance(value, str):  # a byte string, as Python 2's str
            data = value.encode("latin1")
            return b"T" + struct.pack("<i", len(data)) + data
        if isinstance(value, Global):
            return f"c{value.module}\n{value.name}\n".encode()
        if isinstance(value, Persistent):
            return self.encode(value.pid) + b"Q"
        if isinstance(value, Call):
            made = self.encode(value.function) + self.encode(value.args) + (b"\x81" if value.new else b"R")
            return made if value.state is None else made + self.encode(value.state) + b"b"
        return self._encode_container(value)

    def _encode_container(self, value: Any) -> bytes:
        if isinstance(value, OrderedDict):
            return self.encode(Call(Global("collections", "OrderedDict"), ([list(item) for item in value.items()],)))
        if isinstance(value, dict):
            return b"}(" + b"".join(self.encode(k) + self.encode(v) for k, v in value.items()) + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(map(self.encode, value)) + b"e"
        if isinstance(value, tuple):
            return b"(" + b"".join(map(self.encode, value)) + b"t"
        if isinstance(value, nn.Parameter):
            hooks = (True, False, OrderedDict())
            return self.encode(Call(Global("torch.nn.parameter", "Parameter"), (value.data,), hooks))
        if isinstance(value, Tensor):
            return self.encode(self._tensor(value))
        if isinstance(value, nn.Module):
            return self.encode(self._module(value))
        raise TypeError(type(value))

    def _tensor(self, value: Tensor) -> Call:
        key = str(140_000_000 + len(self.storages))
        self.storages[key] = value.detach().contiguous().flatten().numpy()
        pid = ("storage", self.storage_type, key, "cuda:0", value.numel(), None)
        stride = torch.empty(value.shape).stride()
        return Call(Global("torch._utils", "_rebuild_tensor"), (Persistent(pid), 0, tuple(value.shape), stride))

    def _module(self, module: nn.Module) -> Call:
        kind = type(module)
        # The reference repository's classes live in its own modules, which nobody here can import.
        home = "models.resnet" if kind.__module__.startswith("tests.") else kind.__module__
        cls: Any = Global(home, kind.__name__)
        if f"{home}.{kind.__name__}" not in self.sources:
            self.sources.add(f"{home}.{kind.__name__}")
            cls = Persistent(("module", cls, f"{home}.py", "class source text"))
        state = {
            "_backend": Call(Global("torch.nn.backends.thnn", "_get_thnn_function_backend"), ()),
            "_parameters": OrderedDict(module._parameters),
            "_buffers": OrderedDict((k, v) for k, v in module._buffers.items() if k != "num_batches_tracked"),
            "_backward_hooks": OrderedDict(),
            "_forward_hooks": OrderedDict(),
            "_forward_pre_hooks": OrderedDict(),
            "_modules": OrderedDict(module._modules),
            "training": True,
            "int_nchw": Call(Global("torch", "Size"), ((1, 16, 32, 32),)),
        }
        return Call(cls, (), state, new=True)
