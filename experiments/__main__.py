# SPDX-License-Identifier: Apache-2.0
"""``python -m experiments list``, ``run`` and ``render``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments._book import FIGURES, RESULTS
from starshift.errors import StarshiftError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command("list")
def show() -> None:
    """What experiments there are, what to expect of them, what they cost and how many of their rows are there."""
    from rich.console import Console
    from rich.table import Table

    from experiments._book import current, expectation, load, names

    page = Table("experiment", "table or figure", "cost", "rows", title="python -m experiments run NAME --data PATH")
    for name in names():
        experiment, (budget, rows) = load(name), current(name)
        done = f"{len(rows)} of {len(experiment.cells(budget or 'small'))}"
        what = f"{experiment.TITLE}\n[dim]{experiment.SOURCE}. Expected: {expectation(experiment)}[/]"
        costs = "\n".join(f"{name}: {cost}" for name, cost in experiment.COST.items())
        page.add_row(name, what, costs, done, end_section=True)
    Console().print(page)


@app.command()
def run(
    wanted: Annotated[list[str], typer.Argument(metavar="NAME...", help="Experiments, in this order; or 'all'.")],
    data: Annotated[str | None, typer.Option("--data", help="Folder with train/ and test/ class folders.")] = None,
    budget: Annotated[str, typer.Option("--budget", help="smoke, small, paper; gpu for some.")] = "small",
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Cells measured side by side.")] = 1,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Of each job; default: cores / jobs.")] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Where trained networks are kept.")] = Path("runs/experiments"),
    results: Annotated[Path, typer.Option("--results", help="Folder of the CSV files.")] = RESULTS,
) -> None:
    """Measure what is missing of an experiment. Stop it when you like: finished rows stay, trainings are resumed."""
    from experiments._book import draw, names
    from experiments._run import run_experiment

    for name in names() if wanted == ["all"] else wanted:
        run_experiment(name, data, budget, runs, results, jobs=jobs, threads=threads, say=typer.echo)
        if budget != "smoke":
            draw(name, results)


@app.command()
def render() -> None:
    """Draw all figures anew from the rows; ``make docs`` then renders the pages."""
    from experiments._book import draw, names

    for name in names():
        path = draw(name, RESULTS, FIGURES)
        typer.echo(f"{name}: {path or 'no figure'}")


def main() -> None:
    try:
        app(prog_name="python -m experiments", standalone_mode=False)
    except (StarshiftError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    except typer.Exit as done:
        raise SystemExit(done.exit_code) from None
    except (KeyboardInterrupt, typer.Abort):
        raise SystemExit("stopped; finished rows are kept, the same command goes on") from None


if __name__ == "__main__":
    main()
