# SPDX-License-Identifier: Apache-2.0
"""PyTorch's own portable form: a ``torch.export`` program (``.pt2``) that needs no source code of the network."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
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
INPUTS = "data/sample_inputs/model.pt"
RECORDS = re.compile(
    r"models/model\.json|data/weights/(weight_[0-9]+|model_weights_config\.json)|data/sample_inputs/model\.pt"
    r"|data/constants/(tensor_[0-9]+|model_constants_config\.json)|extra/starshift\.json"
    r"|archive_format|archive_version|byteorder|\.data/\w+"
)
"""All that ``torch.export.save`` writes of a program of plain tensors, and our metadata."""
WORD = re.compile(r"\w*", re.ASCII)  # names become source code
PATH = re.compile(r"[\w.@+-]*", re.ASCII)
TEXT = re.compile(r".*", re.DOTALL)
TREE = re.compile(r'([][{}:, 1]|null|"(null|\[\]|type|context|children_spec|builtins\.(tuple|list|dict))")*')
STRINGS = {
    "target": re.compile(  # what a node calls
        r"torch\.ops\.aten\.(?!__|from_file\.|save\.)\w+\.(?!_)\w+"
        r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge)",
        re.ASCII,
    ),
    "expr_str": re.compile(  # a dimension's size, which is evaluated
        r"((Add|FloorDiv|Integer|Max|Min|Mod|Mul|Pow|Symbol)\(|\w+(?![\w(])|'\w+'|[-=, )])+", re.ASCII
    ),
    "path_name": re.compile(r"(weight|tensor)_[0-9]+"),  # other names are unpickled
    "as_string": re.compile(r"[\w.,> -]*", re.ASCII),
    **dict.fromkeys(("in_spec", "out_spec"), TREE),
    **dict.fromkeys(("parameter_name", "buffer_name", "tensor_constant_name", "fqn", "torch_version"), PATH),
    **dict.fromkeys(("nn_module_stack", "torch_fn", "stack_trace"), TEXT),
}
"""What the strings of a program may say, by their keys; all others are a :data:`WORD`."""
EMPTY = ("use_pickle", "guards_code", "as_custom_obj", "as_operator")


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
        content, texts = io.BytesIO(path.read_bytes()), {ENTRY: ""}  # what is checked is what is loaded
        try:
            refuse_code(content, path)
            with quiet("torch.export"):
                program = torch.export.load(content, extra_files=texts)
        except StarshiftError:
            raise
        except Exception as error:  # many classes, of the archive's readers, of JSON and of the schema's
            raise StarshiftError(f"{path} is not a readable torch.export program: {error}") from error
        super().__init__(path, Metadata.from_strings(json.loads(texts[ENTRY] or "{}"), path=path))
        self._device = torch.device(device)
        self._module = program.module(check_guards=False).to(self._device)

    @torch.inference_mode()
    def run(self, batch: Tensor) -> Tensor:
        return self._module(batch.to(self._device)).float().cpu()


def refuse_code(content: io.BytesIO, path: Path) -> None:
    """PyTorch's reader unpickles, evaluates, imports and calls what a file names; ours hold tensors and aten alone.

    Raises:
        StarshiftError: ``content`` holds more than operators and plain tensors.
        Exception: it is no such archive.
    """
    from torch.export.pt2_archive import PT2ArchiveReader  # takes seconds

    reader = PT2ArchiveReader(content)
    names = reader.get_file_names()
    listed = [name.partition("/")[2] for name in zipfile.ZipFile(content).namelist()]
    if names != listed or len({name.casefold() for name in names}) < len(names):
        raise StarshiftError(f"{path} is refused: its records cannot be told apart")
    for name in names:
        if name.startswith("data/aotinductor/"):
            raise StarshiftError(f"{path} holds compiled code: AOTInductor's files end in .aoti.pt2")
        if not RECORDS.fullmatch(name) or (name == INPUTS and not _plain(reader.read_bytes(name))):
            raise StarshiftError(f"{path} is refused: it could run code of its own ({name!r})")
        if name.endswith(".json") and name != f"extra/{ENTRY}":
            for key, value in _items(json.loads(reader.read_string(name))):
                if not _harmless(key, value):
                    raise StarshiftError(f"{path} is refused: it could run code of its own ({key}: {value!r})")
    content.seek(0)


def _plain(saved: bytes) -> bool:
    """Whether these are tensors and plain values; what is not, PyTorch's reader unpickles as it comes."""
    try:
        torch.load(io.BytesIO(saved), weights_only=True)
    except Exception:  # it raises many classes
        return False
    return True


def _harmless(key: str, value: Any) -> bool:
    if key in EMPTY:
        return not value
    return not isinstance(value, str) or STRINGS.get(key, WORD).fullmatch(value) is not None


def _items(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every (key, value) of nested JSON; what lies in a list has the list's key."""
    yield key, tree
    if isinstance(tree, dict):
        for name, child in tree.items():
            yield from _items(child, name)
    elif isinstance(tree, list):
        for child in tree:
            yield from _items(child, key)


TARGET = Torch()
