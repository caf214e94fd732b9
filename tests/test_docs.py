# SPDX-License-Identifier: Apache-2.0
"""What the documentation says is so: its Python runs, its tables are the results, its commands and links exist."""

from __future__ import annotations

import doctest
import importlib.util
import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest

import starshift

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = [m.name for m in pkgutil.walk_packages(starshift.__path__, "starshift.") if "._kernels_" not in m.name]
pages = pytest.mark.parametrize("page", PAGES, ids=[p.name for p in PAGES])


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(import_module(module)).failed == 0


@pages
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        exec(compile(block, page.name, "exec"), {"__name__": "docs"})


@pages
def test_commands_exist_with_their_options(page: Path) -> None:
    from typer.main import get_command

    from starshift.cli.main import app

    group = get_command(app)
    for block in re.findall(r"```(?:bash|console|sh)\n(.*?)```", page.read_text(), re.S):
        for line in re.findall(r"^\s*\$?\s*starshift ([a-z]+)(.*)", block.replace("\\\n", " "), re.M):
            name, rest = line[0], line[1].partition("#")[0]
            command = group.get_command(None, name)
            assert command is not None, f"there is no 'starshift {name}'"
            known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
            for sub in getattr(command, "commands", {}).values():
                known |= {o for p in sub.params for o in (*p.opts, *p.secondary_opts)}
            assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= known, f"unknown option in: starshift {name}{rest}"


@pages
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_tables_are_rendered_from_the_results() -> None:
    spec = importlib.util.spec_from_file_location("render", ROOT / "docs" / "render.py")
    assert spec is not None and spec.loader is not None
    render = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(render)
    stale = [str(path) for path, text in render.rendered().items() if path.read_text() != text]
    assert not stale, f"run `make docs`: stale tables in {stale}"
