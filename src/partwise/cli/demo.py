"""`partwise demo`: FedSubAvg against FedAvg on the reader's own standard library, and a report."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from partwise.cli.app import written
from partwise.cli.run import execute

__all__ = ["DEMOS", "demo_command", "demo_spec"]

DEMOS = ("demo-fedavg.toml", "demo-fedsubavg.toml")

_INTRODUCTION = """\
Your own Python standard library becomes a federation: every module is a client that keeps its code to itself, and
together they learn to complete code. Twice, with the same cohorts: with FedAvg every client trains and sends the whole
model; with FedSubAvg only the rows of the names that it uses.
"""


def demo_command(
    rounds: Annotated[int, typer.Option(help="Of each of the two runs.")] = 150,
    out: Annotated[Path, typer.Option("--out", "-o", help="The report.")] = Path("report.html"),
    root: Annotated[Path, typer.Option("--root", help="Where the folders of runs are made.")] = Path("runs"),
) -> None:
    """Two federated runs on real data, compared.

    It takes about three minutes on two cores, and needs no network.
    """
    from partwise.cli.compare import print_rows
    from partwise.cli.views import view_for
    from partwise.experiment.compare import compare
    from partwise.experiment.report import write_report
    from partwise.experiment.spec import load

    typer.echo(_INTRODUCTION)
    folders = []
    for name in DEMOS:
        with closing(view_for(as_json=False, quiet=False)) as view:
            view.prepare("reading the standard library")
            experiment = load(demo_spec(name), [f"scheduler.rounds={rounds}"])
            folders.append(execute(experiment, view, root=root).folder)
    typer.echo("")
    print_rows(compare(folders))
    with written("--out", out):
        page = write_report(folders, out)
    typer.echo(_what_next(page, folders[-1]))


def demo_spec(name: str) -> Path:
    """Where a demo's specification is: in the installed package, or beside the sources."""
    package = Path(__file__).resolve().parent.parent
    places = (package / "examples" / name, package.parent.parent / "examples" / name)
    return next((path for path in places if path.is_file()), places[0])


def _what_next(page: Path, folder: str) -> str:
    return f"""
The report: {page.resolve().as_uri()}

Next:
  partwise run {demo_spec(DEMOS[1])} algorithm.estimator=count --folder runs/count
  partwise compare {folder} runs/count
  partwise parts                 what else there is
  partwise show {folder} --spec > my.toml"""
