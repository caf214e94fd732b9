# SPDX-License-Identifier: Apache-2.0
"""What a ``.pt2`` file may hold: those that could run code as they are opened are refused before any of it runs."""

from __future__ import annotations

import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from starshift.deploy import Metadata, get_target, load_exported
from starshift.errors import StarshiftError
from starshift.models import create_model
from starshift.preprocessing import Preprocessing
from tests.tolerance import assert_close

SIDE = 32
CLASSES = ("a", "b", "c")
IMAGES = torch.randn(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
MODEL, CONSTANTS = "models/model.json", "data/constants/model_constants_config.json"
Change = Callable[[dict[str, bytes], Path], None]


class Windows(nn.Module):
    """Sizes that are multiples of the batch's, a named convolution, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ModuleDict({"conv-1": nn.Conv2d(3, 8, 4, 4)})
        self.linear = nn.Linear(8, 3)
        self.scale = [0.5]

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv["conv-1"](x).flatten(2).transpose(1, 2)
        n, tokens, c = x.shape
        x = self.linear(x.reshape(n * tokens, c)).reshape(n, tokens, 3)
        return torch.einsum("ntc->nc", x) * torch.tensor(self.scale)


def _write(model: nn.Module, path: Path) -> Path:
    torch.manual_seed(0)
    facts = Metadata("m", CLASSES, Preprocessing((SIDE, SIDE)))
    get_target("torch").export(model.eval(), IMAGES[:2], facts, path)
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = create_model("starnet_s050_32px", num_classes=3, depths=(1, 1), base_dim=8)
    return _write(model, tmp_path_factory.mktemp("good") / "good.pt2")


@pytest.mark.parametrize(
    "make",
    [
        Windows,
        lambda: create_model("demonet_d12_w32", num_classes=3),
        lambda: create_model("shiftresnet20", num_classes=3),
        lambda: create_model(
            "swin_tiny_patch4_window7_224",
            num_classes=3,
            img_size=SIDE,
            window_size=2,
            depths=(1, 1),
            embed_dim=12,
            num_heads=(2, 2),
        ),
    ],
    ids=["sizes", "demonet", "shiftresnet", "swin"],
)
def test_what_networks_are_written_as_is_opened(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = make()
    predictor = load_exported(_write(model, tmp_path / "m.pt2"))
    with torch.inference_mode():
        assert_close("answers", predictor.logits(IMAGES), model(IMAGES))


def _rewritten(path: Path, out: Path, change: Change, mark: Path) -> Path:
    """A copy of an archive with ``change`` applied to its records (without their folder)."""
    with zipfile.ZipFile(path) as old:
        records = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
    change(records, mark)
    with zipfile.ZipFile(out, "w") as new:
        for name, content in records.items():
            new.writestr(f"any/{name}", content)
    return out


class Touch:
    """Creates a file as it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpickled_constant(records: dict[str, bytes], mark: Path, name: str = "opaque_obj_0") -> None:
    weights = json.loads(records["data/weights/model_weights_config.json"])["config"]
    meta = next(iter(weights.values())) | {"path_name": name, "use_pickle": False}
    content = pickle.dumps(Touch(mark))
    records[f"data/constants/{name}"] = content + bytes(-len(content) % 4)
    records[CONSTANTS] = json.dumps({"config": {"c": meta}}).encode()


def _torchbind_constant(records: dict[str, bytes], mark: Path) -> None:
    _unpickled_constant(records, mark, "custom_obj_0")


def _pickled_weight(records: dict[str, bytes], mark: Path) -> None:
    config = json.loads(records["data/weights/model_weights_config.json"])
    meta = next(iter(config["config"].values()))
    meta["use_pickle"] = True
    records[f"data/weights/{meta['path_name']}"] = _saved(Touch(mark))
    records["data/weights/model_weights_config.json"] = json.dumps(config).encode()


def _unsafe_inputs(records: dict[str, bytes], mark: Path) -> None:
    records["data/sample_inputs/model.pt"] = _saved(((Touch(mark),), {}))


def _other_program(records: dict[str, bytes], mark: Path, name: str = "models/model.evil") -> None:
    tree = json.loads(records[MODEL])
    _tree(tree, mark)
    records[name] = json.dumps(tree).encode()
    model = name[len("models/") : -len(".json")]  # as PyTorch's reader cuts it
    for record in ("weights/{}_weights_config.json", "constants/{}_constants_config.json", "sample_inputs/{}.pt"):
        records["data/" + record.format(model)] = records["data/" + record.format("model")]


def _program_named_as_our_metadata(records: dict[str, bytes], mark: Path) -> None:
    _other_program(records, mark, "models/starshift.json")


def _old_weights(records: dict[str, bytes], mark: Path) -> None:
    records["data/weights/model.pt"] = _saved({"w": Touch(mark)})


def _old_constants(records: dict[str, bytes], mark: Path) -> None:
    records["data/constants/model.pt"] = _saved({"c": Touch(mark)})


def _in_the_program(change: Callable[[dict, Path], None]) -> Change:
    def rewrite(records: dict[str, bytes], mark: Path) -> None:
        tree = json.loads(records[MODEL])
        change(tree, mark)
        records[MODEL] = json.dumps(tree).encode()

    return rewrite


def _guards(tree: dict, mark: Path) -> None:
    tree["guards_code"] = [f"__import__('pathlib').Path({str(mark)!r}).touch()"]


def _target(name: str) -> Callable[[dict, Path], None]:
    def change(tree: dict, mark: Path) -> None:
        tree["graph_module"]["graph"]["nodes"][0]["target"] = name

    return change


def _name(tree: dict, mark: Path) -> None:
    # It stands in the source code twice; the second ends the string that the first begins.
    code = f'x):\n    __import__("pathlib").Path({str(mark)!r}).touch(); """#'
    tree["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = [code]


def _tree(tree: dict, mark: Path) -> None:
    module = mark.parent.name
    mark.with_name(f"{module}.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\nx = 1")
    spec = {"default_factory_module": module, "default_factory_name": "x", "dict_context": []}
    text = json.dumps([1, {"type": "collections.defaultdict", "context": spec, "children_spec": []}])
    tree["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = text


def _size(tree: dict, mark: Path) -> None:
    sizes = next(iter(tree["graph_module"]["graph"]["tensor_values"].values()))["sizes"]
    sizes[0] = {"as_expr": {"expr_str": f"__import__('pathlib').Path({str(mark)!r}).touch()", "hint": None}}


@pytest.mark.parametrize(
    "change",
    [
        _unpickled_constant,
        _torchbind_constant,
        _pickled_weight,
        _unsafe_inputs,
        _other_program,
        _program_named_as_our_metadata,
        _old_weights,
        _old_constants,
        *map(_in_the_program, (_guards, _name, _tree, _size)),
        *[
            _in_the_program(_target(name))
            for name in (
                "torch.serialization.os.system",
                "_operator.attrgetter",
                "_operator.call",
                "torch.ops.aten.conv2d.__reduce_ex__",
                "torch.ops.aten.from_file.default",
                "torch.ops.aten.save.default",
            )
        ],
    ],
)
def test_what_could_run_code_is_refused_before_it_runs(
    change: Change, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    mark = tmp_path / "mark"
    path = _rewritten(good, tmp_path / "evil.pt2", change, mark)
    with pytest.raises(StarshiftError, match="is refused: it could run code of its own"):
        load_exported(path).logits(IMAGES)
    assert not mark.exists()


def test_the_same_records_in_another_folder_are_opened(good: Path, tmp_path: Path) -> None:
    path = _rewritten(good, tmp_path / "same.pt2", lambda records, mark: None, tmp_path)
    assert torch.equal(load_exported(path).logits(IMAGES), load_exported(good).logits(IMAGES))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["good/models/model.json", "good/Models/model.json", "models/model.json", "version"])
def test_records_that_can_be_mistaken_for_each_other_are_refused(name: str, good: Path, tmp_path: Path) -> None:
    path = tmp_path / "twice.pt2"
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w") as new:
        for record in old.namelist():
            new.writestr("good/" + record.partition("/")[2], old.read(record))
        new.writestr(name, b"{}")
    with pytest.raises(StarshiftError, match=r"twice\.pt2 is (refused|not a readable)"):
        load_exported(path)


def test_compiled_code_is_told_apart(good: Path, tmp_path: Path) -> None:
    def change(records: dict[str, bytes], mark: Path) -> None:
        records["data/aotinductor/model/x.so"] = b""

    with pytest.raises(StarshiftError, match=r"compiled code: AOTInductor's files end in \.aoti\.pt2"):
        load_exported(_rewritten(good, tmp_path / "m.pt2", change, tmp_path))
