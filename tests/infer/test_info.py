# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.metadata
import json

import pytest
import torch

import starshift
from starshift.infer import info
from starshift.ops import kernel_status


def test_facts_are_those_of_this_installation() -> None:
    facts = info()
    assert facts["versions"]["starshift"] == starshift.__version__
    assert facts["versions"]["torch"] == importlib.metadata.version("torch")
    assert facts["threads"]["torch"] == torch.get_num_threads()
    assert facts["kernels"] == kernel_status()
    compiled = facts["compiled kernels"]
    assert compiled.get("threads") == torch.get_num_threads() or "plain PyTorch" in compiled["none"]
    assert facts["formats"]["onnx"] == "available"
    assert "onnxruntime" in facts["optional"] and "pytest" not in facts["optional"]
    assert json.loads(json.dumps(facts)) == facts


def test_an_absent_package_comes_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(package: str) -> str:
        if package == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setitem(info.__globals__, "version", version)
    assert info()["optional"]["onnxruntime"] == "not installed: pip install 'starshift[onnx]'"
