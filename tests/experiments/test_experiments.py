# SPDX-License-Identifier: Apache-2.0
"""Every experiment builds at every budget, runs at its smallest and goes on; its page is that of its rows."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from experiments import _book
from experiments.__main__ import app
from experiments._book import (
    FIGURES,
    OWN,
    Claim,
    claims_table,
    current,
    digest,
    draw,
    drawn_from,
    expectation,
    load,
    measured,
    names,
    read,
)
from experiments._cells import BUDGETS, Cell, Context, as_text, missing
from experiments._run import run_experiment
from experiments._stats import Spread, above, below, difference, signed, spread
from experiments._stats import every as every_verdict
from starshift.errors import StarshiftError
from starshift.training import resolve

every = pytest.mark.parametrize("name", names())


@every
def test_an_experiment_says_what_it_is(name: str) -> None:
    experiment = load(name)
    assert set(BUDGETS) - {"gpu"} <= set(experiment.COST) <= set(BUDGETS)
    assert f"python -m experiments run {name}" in experiment.__doc__
    for text in (experiment.TITLE, experiment.SOURCE, experiment.SETTING, expectation(experiment)):
        assert text and not text.endswith(".")


@every
@pytest.mark.parametrize("budget", BUDGETS)
def test_cells_have_distinct_keys_and_settings_that_training_takes(name: str, budget: str) -> None:
    if budget not in load(name).COST:
        pytest.skip("has no such budget")
    cells = load(name).cells(budget)
    keys = [as_text(cell.key) for cell in cells]
    assert cells and len(set(keys)) == len(keys)
    for cell in cells:
        settings = {
            k: v for k, v in cell.settings.items() if k not in ("seconds", "images", "rounds", "bins", "threads")
        }
        resolve(settings.pop("recipe", "quick"), settings)


@every
def test_smoke(name: str, tmp_path: Path) -> None:
    """Rows are written, a second run finds them, and table, claims and figure are made of them."""
    said: list[str] = []
    for _ in range(2):
        run_experiment(name, None, "smoke", tmp_path / "runs", tmp_path, threads=1, say=said.append)
    rows, experiment = read(name, tmp_path), load(name)
    assert len(rows) == len(experiment.cells("smoke")) and not missing(experiment.cells("smoke"), rows, "smoke")
    assert ", 0 to measure" in said[-1]
    for row in rows:
        assert row["budget"] == "smoke" and row["commit"] is not None and row["torch"] and row["cpu"]
        json.loads(row["settings"])
    assert experiment.table(rows).startswith("|")
    for claim in experiment.claims(rows):
        assert isinstance(claim, Claim) and claim.verdict
    if hasattr(experiment, "figure"):
        figure = experiment.figure(rows)
        figure.savefig(tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 1000


def test_jobs_side_by_side_measure_the_same_and_train_a_network_that_several_want_once(tmp_path: Path) -> None:
    found = []
    for jobs in (1, 2):
        out = tmp_path / str(jobs)
        run_experiment("compression", None, "smoke", out / "runs", out, jobs=jobs, threads=1, say=lambda _: None)
        rows = read("compression", out)
        assert len(list((out / "runs").glob("*/summary.json"))) == len({row["network"] for row in rows})
        found.append({(r["network"], r["weights"], r["bits"]): (r["top1"], r["bytes"]) for r in rows})
    assert found[0] == found[1] and len(found[0]) == len(load("compression").cells("smoke"))


def test_a_training_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    context = Context("digits", "smoke", tmp_path)
    settings: dict[str, Any] = {"model_args": {"expansion": 1}}
    run = context.train("shiftresnet20", settings)
    assert context.train("shiftresnet20", settings).path == run.path
    summary = (run.path / "summary.json").read_text()
    (run.path / "summary.json").unlink()
    resumed = context.train("shiftresnet20", settings)
    assert resumed.path == run.path
    assert resumed.best_top1 == json.loads(summary)["best_top1"]
    for file in (run.path / "checkpoints").iterdir():
        file.unlink()
    (run.path / "summary.json").unlink()
    assert context.train("shiftresnet20", settings).best_top1 == run.best_top1


def test_a_row_of_other_settings_does_not_count() -> None:
    cell = Cell({"width": 16}, lambda context: {}, {"lr": 0.1})
    row = {"budget": "small", "width": "16", "settings": as_text({"lr": 0.1})}
    assert missing([cell], [row], "small") == []
    assert missing([cell], [row], "paper") == [0]
    assert missing([cell], [{**row, "settings": as_text({"lr": 0.2})}], "small") == [0]
    assert missing([cell], [{**row, "width": "32"}], "small") == [0]


def test_mistakes_are_answered_in_one_line(tmp_path: Path) -> None:
    def run(name: str, budget: str) -> None:
        run_experiment(name, None, budget, tmp_path, tmp_path)

    with pytest.raises(StarshiftError, match="Did you mean 'star_width'"):
        run("star_widht", "small")
    with pytest.raises(StarshiftError, match="--budget of star_width is one of"):
        run("star_width", "smal")
    with pytest.raises(StarshiftError, match="--data"):
        run("star_width", "small")


def test_repeats_are_put_together() -> None:
    rows = [
        {"mode": mode, "seed": seed, "top1": top1}
        for mode, seed, top1 in (("star", "0", "50"), ("star", "1", "54"), ("sum", "0", "48"), ("sum", "1", "49"))
    ]
    assert spread(rows, mode="star") == Spread((50.0, 54.0)) and spread(rows, mode="other") is None
    gap = difference(rows, {"mode": "star"}, {"mode": "sum"})
    assert gap == Spread((2.0, 5.0)) and signed(gap) == "+3.5 (+2.0 to +5.0)"
    assert (
        above(gap) is True
        and above(gap, 3) is None
        and above(gap, 6) is False
        and above(None) is above(Spread((3.0,))) is None
    )


def test_one_clear_exception_refutes_a_claim_of_all() -> None:
    assert every_verdict([True, True]) is True
    assert every_verdict([True, None, False]) is False
    assert every_verdict([True, None]) is every_verdict([]) is None
    gap = Spread((2.0, 5.0))
    assert below(gap) is False and below(gap, 6) is True and below(gap, 3) is below(None) is None


def test_claims_are_made_of_the_largest_budget_that_is_whole(tmp_path: Path) -> None:
    """A table stands for each that has rows; one row of a dearer one does not hide a finished cheaper one."""
    experiment = load("star_depth")

    def write(*rows: tuple[str, Cell]) -> None:
        lines = [{"budget": b, **cell.key, "settings": as_text(cell.settings), "top1": 5} for b, cell in rows]
        with (tmp_path / "star_depth.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, lines[0])
            writer.writeheader()
            writer.writerows(lines)

    small, paper = experiment.cells("small"), experiment.cells("paper")
    write(("small", small[0]), ("paper", paper[0]))
    assert current("star_depth", tmp_path)[0] == "paper", "none is whole"
    write(*(("small", cell) for cell in small), ("paper", paper[0]))
    assert list(measured("star_depth", tmp_path)) == ["paper", "small"]
    budget, rows = current("star_depth", tmp_path)
    assert (budget, len(rows)) == ("small", len(small))
    assert current("star_depth", tmp_path / "none") == ("", [])


def test_list_shows_every_experiment() -> None:
    shown = CliRunner().invoke(app, ["list"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0 and all(name in shown.stdout for name in names())
    assert "star some points above sum at every depth" in " ".join(shown.stdout.split())


@every
def test_figures_are_drawn_from_todays_rows(name: str) -> None:
    _, rows = current(name)
    if hasattr(load(name), "figure") and rows:
        assert drawn_from(FIGURES / f"{name}.png") == digest(rows), "run: python -m experiments render"


def test_a_figure_carries_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"mode": m, "depth": d, "seed": "0", "top1": "5"} for m in ("star", "sum") for d in ("2", "4")]
    monkeypatch.setattr(_book, "current", lambda name, results: ("small", rows))
    path = draw("star_depth", tmp_path, tmp_path)
    assert path is not None and drawn_from(path) == digest(rows) != digest(rows[:-1])


def test_claims_of_all_experiments_make_two_tables() -> None:
    for own in (False, True):
        text = claims_table(own)
        for name in names():
            rows = current(name)[1]
            for claim in load(name).claims(rows) if rows else []:
                assert (f"| {claim.text} |" in text) == ((claim.published in OWN) == own)


def test_commands_in_the_docs_name_experiments_that_exist() -> None:
    root = Path(__file__).parents[2]
    text = "".join(page.read_text() for page in (root / "README.md", *(root / "docs").glob("*.md")))
    named = re.findall(r"python -m experiments run ([a-z]\w+)", text)
    assert set(named) == set(names())
