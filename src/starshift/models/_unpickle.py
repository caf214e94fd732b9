# SPDX-License-Identifier: Apache-2.0
"""Tensors out of pickled PyTorch files, without building a foreign object or running foreign code.

Whole pickled modules (``torch.save(net)``, also by Python 2 in 2017) need their classes to be imported, which runs
whatever the file names. Here every class or function that a file names becomes an inert placeholder which only
remembers its arguments and state; the few names that make tensors and ordered dictionaries are answered by functions
of this module. Read are both formats of ``torch.save``: the stream (until 1.5) and the zip archive.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from starshift.errors import StarshiftError

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


class Inert:
    """Stands for an object whose class is not built. Whatever pickle does to it is remembered or ignored."""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        self = object.__new__(cls)
        self.args, self.state = args, None
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: ``__new__`` has kept the arguments."""

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return Inert(*args)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def _ignore(self, *args: Any) -> None:
        """Items that pickle would add to a list, set or dictionary."""

    __setitem__ = append = extend = add = _ignore


class Box:
    """Holds a tensor where pickle could otherwise call the tensor's own ``__setstate__``."""

    __slots__ = ("tensor",)
    tensor: Tensor

    def __init__(self, tensor: Tensor) -> None:
        object.__setattr__(self, "tensor", tensor)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("a tensor takes no attributes")

    def __setstate__(self, state: Any) -> None:
        """Ignored: requires_grad and hooks."""


class _StorageType(Inert):
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _Unpickler(pickle.Unpickler):
    """Knows tensors, their storages, ordered dictionaries; everything else is inert."""

    def __init__(self, file: IO[bytes], storage: Callable[[Any], Any]) -> None:
        super().__init__(file, encoding="latin1")
        self._storage = storage
        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            ("torch.nn.parameter", "Parameter"): self._parameter,
            ("torch.nn.parameter", "Buffer"): self._parameter,
            ("torch.autograd.variable", "Variable"): self._parameter,
            ("torch", "Size"): self._size,
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._known:
            return self._known[module, name]
        if module in ("torch", "torch.cuda") and name.removesuffix("Storage") in _DTYPES:
            return _StorageType(_DTYPES[name.removesuffix("Storage")])
        return type(str(name), (Inert,), {"__module__": str(module)})

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or not pid:
            raise pickle.UnpicklingError("a persistent id of unknown kind")
        if pid[0] == "module":  # a container's class, its file and its source text: the class is a placeholder already
            return pid[1]
        return self._storage(pid)

    def _tensor(self, storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Box:
        if not isinstance(storage, Box):
            raise pickle.UnpicklingError("a tensor without storage")
        size, stride = tuple(map(int, size)), tuple(map(int, stride))
        if math.prod(size) > storage.tensor.numel():  # repeated elements: no saved weight has them
            raise pickle.UnpicklingError("a tensor larger than its storage")
        return Box(torch.as_strided(storage.tensor, size, stride, int(offset)))

    def _parameter(self, data: Any, *rest: Any) -> Any:
        return data

    def _size(self, *args: Any) -> tuple[Any, ...]:
        return tuple(args[0]) if args else ()


def load_inert(path: Path) -> Any:
    """What ``torch.save`` wrote to ``path``, with placeholders (:class:`Inert`) for foreign objects, on the CPU.

    Raises:
        StarshiftError: the file is damaged or not of a known format.
    """
    try:
        if zipfile.is_zipfile(path):
            return unbox(_load_zip(path))
        if tarfile.is_tarfile(path):
            raise StarshiftError(f"{path} was written by a PyTorch before 0.1.10: save it again with a newer one")
        return unbox(_load_stream(path))
    except StarshiftError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise StarshiftError(f"{path} is damaged or no PyTorch file ({type(error).__name__}: {error})") from error


def module_state_dict(module: Inert) -> dict[str, Tensor]:
    """The state dict of a pickled ``nn.Module``: names and tensors from its ``_parameters``, ``_buffers``,
    ``_modules``.
    """
    found: dict[str, Tensor] = {}
    _collect(module, "", found, depth=0)
    return found


def unbox(value: Any) -> Any:
    """The same nest of dictionaries, lists, tuples and placeholders with bare tensors in place of boxes."""
    return _unbox(value, {})


def _collect(module: Any, prefix: str, found: dict[str, Tensor], depth: int) -> None:
    state = module.state if isinstance(module, Inert) else None
    if not isinstance(state, Mapping) or depth > 100:
        return
    for group in ("_parameters", "_buffers"):
        for name, value in (state.get(group) or {}).items():
            if isinstance(value, Tensor):
                found[f"{prefix}{name}"] = value
    for name, child in (state.get("_modules") or {}).items():
        _collect(child, f"{prefix}{name}.", found, depth + 1)


def _unbox(value: Any, seen: dict[int, Any]) -> Any:
    if isinstance(value, Box):
        return value.tensor
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, dict):
        result: dict[Any, Any] = {}
        seen[id(value)] = result
        result.update((key, _unbox(item, seen)) for key, item in value.items())
        return result
    if isinstance(value, (list, tuple)):
        seen[id(value)] = value
        return type(value)(_unbox(item, seen) for item in value)
    if isinstance(value, Inert):
        seen[id(value)] = value
        value.state = _unbox(value.state, seen)
    return value


def _load_stream(path: Path) -> Any:
    """Pickles of magic number, protocol, machine, the object, the storages' keys; then each storage: count and
    bytes.
    """
    limit = path.stat().st_size
    storages: dict[str, Box] = {}
    total = 0

    def storage(pid: Any) -> Box:
        nonlocal total
        kind, storage_type, key, _, count, *view = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError(f"a persistent id of unknown kind {kind!r}")
        if key not in storages:
            total += int(count) * storage_type.dtype.itemsize
            if int(count) < 0 or total > limit:
                raise pickle.UnpicklingError("storages larger than the file")
            storages[key] = Box(torch.zeros(int(count), dtype=storage_type.dtype))
        if not view or view[0] is None:
            return storages[key]
        _, offset, size = view[0]
        return Box(storages[key].tensor.narrow(0, int(offset), int(size)))

    with path.open("rb") as file:
        header = [_Unpickler(file, storage).load() for _ in range(3)]
        if header[0] != MAGIC_NUMBER:
            raise StarshiftError(f"{path} is no PyTorch file")
        if isinstance(header[2], dict) and not header[2].get("little_endian", True):
            raise StarshiftError(f"{path} was written on a big-endian machine, which is not supported")
        value = _Unpickler(file, storage).load()
        for key in _Unpickler(file, storage).load():
            flat = storages[key].tensor
            (count,) = struct.unpack("<q", file.read(8))
            if count != flat.numel():
                raise pickle.UnpicklingError("a storage of another size than announced")
            flat.copy_(_from_bytes(file.read(count * flat.element_size()), flat.dtype, count))
    return value


def _load_zip(path: Path) -> Any:
    """``<name>/data.pkl`` and one stored entry ``<name>/data/<key>`` for each storage."""
    with zipfile.ZipFile(path) as archive:
        pickles = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise StarshiftError(f"{path} is a zip archive, but not one of PyTorch's")
        root = pickles[0].removesuffix("data.pkl")
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise StarshiftError(f"{path}: PyTorch's archives are not compressed, this one is")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != sys.byteorder.encode():
            raise StarshiftError(f"{path} was written on a machine of another byte order, which is not supported")
        storages: dict[str, Box] = {}

        def storage(pid: Any) -> Box:
            kind, storage_type, key, _, count = pid
            if kind != "storage" or not isinstance(storage_type, _StorageType):
                raise pickle.UnpicklingError(f"a persistent id of unknown kind {kind!r}")
            if key not in storages:
                data = archive.read(f"{root}data/{key}")
                storages[key] = Box(_from_bytes(data, storage_type.dtype, int(count)).clone())
            return storages[key]

        return _Unpickler(io.BytesIO(archive.read(pickles[0])), storage).load()


def _from_bytes(data: bytes, dtype: torch.dtype, count: int) -> Tensor:
    if len(data) != count * dtype.itemsize:
        raise EOFError("the file ends within a storage")
    if not count:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype, count=count)
