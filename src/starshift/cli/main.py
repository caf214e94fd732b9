# SPDX-License-Identifier: Apache-2.0
"""The ``starshift`` command: finds its subcommands by file name and turns errors into one line and an exit code.

A subcommand is a file in this folder that holds ``HELP`` (one sentence) and either a function ``command`` or a Typer
app ``app`` (for a group of commands). Files that begin with an underscore are not commands. Everything heavy is
imported inside the function, since ``starshift --help`` reads every file.

Exit codes: 0 done; 1 done, but some of the input failed; 2 a mistake in the call or its input; 130 interrupted;
141 the reader of the output went away.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from starshift import __version__
from starshift.errors import StarshiftError, nearest

FOLDER = Path(__file__).parent
EPILOG = "'starshift COMMAND --help' shows the options of one command."


def command_names() -> list[str]:
    """Every subcommand: the files of this folder, without this one and those that begin with an underscore."""
    return sorted(f.stem for f in FOLDER.glob("*.py") if not f.stem.startswith("_") and f.stem != "main")


def _module(name: str) -> ModuleType:
    return import_module(f"{__package__}.{name}")


class Commands(TyperGroup):
    """A group whose commands are the files beside this one, each imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return command_names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in command_names():
            return None
        module = _module(cmd_name)
        if hasattr(module, "app"):
            command: Any = get_group(module.app)
        else:
            single = typer.Typer(add_completion=False)
            single.command(name=cmd_name, help=module.HELP)(module.command)
            command = get_command(single)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if not name.startswith("-") and name not in command_names():
            there_are = ", ".join(command_names())
            ctx.fail(f"No such command '{name}'.{nearest(name, command_names())} There are: {there_are}.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _module(name).HELP) for name in command_names()])

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _silence_stdout()
            raise typer.Exit(141) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None
        except (StarshiftError, OSError) as error:
            if ctx.params.get("traceback"):
                raise
            typer.echo(f"error: {describe(error)}", err=True)
            raise typer.Exit(2) from None


def describe(error: Exception) -> str:
    """One line (or a few) a user can act on: for errors of the operating system, what failed and on which file."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _silence_stdout() -> None:
    """Send what is still buffered nowhere, so that the interpreter's last flush does not fail on the closed pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# Rich's help is prettier but costs another 0.25 s of imports: the commands have it, the first page is plain.
app = typer.Typer(
    cls=Commands, rich_markup_mode=None, no_args_is_help=True, epilog=EPILOG, pretty_exceptions_enable=False
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"starshift {__version__}")
        raise typer.Exit


@app.callback()
def starshift(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where in the program an error arose.")] = False,
) -> None:
    """Small, fast image networks: from a folder of images to a verified file for the device."""


def main() -> None:
    """Entry point of the ``starshift`` script and of ``python -m starshift.cli.main``."""
    app(prog_name="starshift")


if __name__ == "__main__":
    main()
