# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import starshift
from starshift.cli import main
from starshift.errors import StarshiftError

START = [sys.executable, "-m", "starshift.cli.main"]


def test_every_file_is_a_command_with_help() -> None:
    names = main.command_names()
    assert {"eval", "predict", "export", "models", "info", "train"} <= set(names)
    listed = CliRunner().invoke(main.app, ["--help"]).output
    for name in names:
        assert f"  {name} " in listed
        shown = CliRunner().invoke(main.app, [name, "--help"])
        assert shown.exit_code == 0 and "Usage" in shown.output, shown.output


def test_a_file_in_the_folder_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "greet.py").write_text(
        "import typer\nHELP = 'Say hello.'\ndef command(name: str) -> None:\n    typer.echo(f'hello {name}')\n"
    )
    (tmp_path / "many.py").write_text(
        "import typer\nHELP = 'A group.'\napp = typer.Typer()\n"
        "@app.command()\ndef one() -> None:\n    typer.echo('one')\n"
    )
    (tmp_path / "_hidden.py").write_text("raise RuntimeError")
    monkeypatch.setattr(main, "FOLDER", tmp_path)
    import starshift.cli

    monkeypatch.setattr(starshift.cli, "__path__", [str(tmp_path)])
    for name in ("greet", "many"):
        monkeypatch.delitem(sys.modules, f"starshift.cli.{name}", raising=False)
    run = CliRunner()
    assert "Say hello." in run.invoke(main.app, ["--help"]).output
    assert run.invoke(main.app, ["greet", "you"]).output == "hello you\n"
    assert run.invoke(main.app, ["many", "one"]).output == "one\n"
    assert main.command_names() == ["greet", "many"]


def test_version() -> None:
    result = CliRunner().invoke(main.app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"starshift {starshift.__version__}\n")


def test_an_unknown_command_names_the_nearest() -> None:
    result = CliRunner().invoke(main.app, ["exprot"])
    assert result.exit_code == 2
    assert "No such command 'exprot'. Did you mean 'export'?" in result.output


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (StarshiftError("the folder is empty"), 2, "error: the folder is empty"),
        (PermissionError(13, "Permission denied", "runs/a"), 2, "error: Permission denied: runs/a"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(monkeypatch: pytest.MonkeyPatch, error, code: int, line: str) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("starshift.infer.info", fail)
    result = CliRunner().invoke(main.app, ["info"])
    assert (result.exit_code, result.stderr.strip()) == (code, line)
    if code == 2:
        assert CliRunner().invoke(main.app, ["--traceback", "info"]).exception is error


def test_a_mistake_in_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starshift.infer.info", lambda: 1 / 0)
    assert isinstance(CliRunner().invoke(main.app, ["info"]).exception, ZeroDivisionError)


def _run(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*START, *args], capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]


def test_help_imports_nothing_heavy_and_is_quick() -> None:
    code = (
        "import sys\nfrom starshift.cli import main\n"
        "try:\n    main.app(['--help'])\nexcept SystemExit:\n    ended = True\n"
        "heavy = ('torch', 'numpy', 'timm', 'lightning', 'rich.console', 'PIL', 'yaml', 'matplotlib')\n"
        "print('heavy:', [m for m in heavy if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "heavy: []"
    # 0.25 s on a machine that does nothing else. What bounds it everywhere is the time that Typer takes to import.
    own = min(_seconds([sys.executable, "-c", "import typer"]) for _ in range(3))
    ours = min(_seconds([*START, "--help"]) for _ in range(3))
    assert ours < 2 * own + 0.1


def _seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - start


def test_a_mistake_ends_a_process_with_2_and_no_traceback(tmp_path: Path) -> None:
    result = _run("predict", str(tmp_path / "norun"), "a.jpg")
    assert result.returncode == 2
    assert result.stderr.startswith("error: no run at") and "Traceback" not in result.stderr
    assert result.stdout == ""


def test_an_exported_file_is_used_without_importing_the_models(onnx_file: Path, make_photos, tmp_path: Path) -> None:
    make_photos(tmp_path, 1)
    code = (
        "import sys, starshift\nassert next(starshift.predict(sys.argv[1], sys.argv[2])).labels\n"
        "print([m for m in ('timm', 'torchvision', 'lightning', 'starshift.models') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(onnx_file), str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.skipif(os.name != "posix", reason="pipes of this kind are POSIX's")
def test_a_reader_that_goes_away_is_no_error(small_model: Path, make_photos, tmp_path: Path) -> None:
    make_photos(tmp_path, 40)
    command = [*START, "predict", str(small_model), str(tmp_path), "--batch-size", "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=120) == 141
