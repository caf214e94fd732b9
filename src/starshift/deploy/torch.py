# SPDX-License-Identifier: Apache-2.0
"""PyTorch's own portable form: a ``torch.export`` program (``.pt2``) that needs no source code of the network."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from starshift.deploy._file import FilePredictor
from starshift.deploy._metadata import Metadata
from starshift.deploy._program import export_program
from starshift.deploy._quiet import quiet
from starshift.deploy._target import Target
from starshift.errors import StarshiftError

ENTRY = "starshift.json"
TARGETS = re.compile(r"(torch\.ops\.aten|_operator)\.\w+(\.\w+)?")  # what a node of a program may call
EXPRESSION = re.compile(r"\w+|Symbol\('\w+'(, \w+=(True|False))*\)")  # what a dimension's size may be written as


class Torch(Target):
    """An exported program, any batch size; on CUDA and the CPU alike."""

    name = "torch"
    suffix = ".pt2"
    extra = ""
    packages = runtime = ()

    def export(self, model: nn.Module, example: Tensor, metadata: Metadata, path: Path) -> None:
        program = export_program(model, example)
        with quiet():
            torch.export.save(program, path, extra_files={ENTRY: json.dumps(metadata.to_strings())})

    def load(self, path: Path, *, device: str = "cpu") -> TorchProgramPredictor:
        return TorchProgramPredictor(path, device=device)


class TorchProgramPredictor(FilePredictor):
    """The program as a module of PyTorch."""

    def __init__(self, path: Path, *, device: str = "cpu") -> None:
        refuse_code(path)
        texts = {ENTRY: ""}
        try:
            with quiet():
                program = torch.export.load(path, extra_files=texts)
        except Exception as error:  # many classes, of the archive's reader and of the schema's
            raise StarshiftError(f"{path} is not a readable torch.export program: {error}") from error
        super().__init__(path, Metadata.from_strings(json.loads(texts[ENTRY] or "{}"), path=path))
        self._device = torch.device(device)
        self._module = program.module(check_guards=False).to(self._device)

    @torch.inference_mode()
    def run(self, batch: Tensor) -> Tensor:
        return self._module(batch.to(self._device)).float().cpu()


def refuse_code(path: Path) -> None:
    """PyTorch's reader unpickles, evaluates and calls whatever such a file names; ours hold tensors and aten alone.

    Raises:
        StarshiftError: ``path`` is no such archive, or holds more than operators and plain tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if "/sample_inputs/" in name:
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
                elif name.endswith(".json") and not name.endswith("/" + ENTRY):
                    for key, value in _items(json.loads(archive.read(name))):
                        if not _harmless(key, value):
                            raise StarshiftError(f"{path} is refused: it could run code of its own ({key}: {value!r})")
                elif "/aotinductor/" in name:
                    raise StarshiftError(f"{path} holds compiled code: AOTInductor's files end in .aoti.pt2")
    except StarshiftError:
        raise
    except Exception as error:  # of the zip, of JSON and of the unpickler
        raise StarshiftError(f"{path} is not a readable torch.export program: {error}") from error


def _harmless(key: str, value: Any) -> bool:
    if key in ("use_pickle", "guards_code", "as_custom_obj", "as_operator"):
        return not value
    if key == "target" and isinstance(value, str):
        return TARGETS.fullmatch(value) is not None
    return key != "expr_str" or (isinstance(value, str) and EXPRESSION.fullmatch(value) is not None)


def _items(tree: Any) -> Any:
    """Every (key, value) of nested JSON."""
    if isinstance(tree, dict):
        yield from tree.items()
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _items(child)


TARGET = Torch()
