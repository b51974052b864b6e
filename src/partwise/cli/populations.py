"""`partwise data`: who the clients of a specification are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from partwise.cli.app import written

__all__ = ["data"]

data = typer.Typer(help="Who the clients of a specification are.", no_args_is_help=True)


@data.callback()
def _data() -> None:
    pass


@data.command("show")
def show(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.toml", help="Whose clients.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to it.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A picture: .png, .svg or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of words.")] = False,
) -> None:
    """The clients in numbers, and as a picture."""
    from partwise.core.workload import Workload
    from partwise.experiment.spec import load
    from partwise.populations.picture import describe, draw

    experiment = load(spec, list(overrides or ()))
    found = experiment.workload
    workload = found if isinstance(found, Workload) else found.build(experiment.seed)
    numbers = describe(workload.population, workload.model)
    if as_json:
        typer.echo(json.dumps(numbers))
    else:
        typer.echo(f"{found!r}\n" + "\n".join(_lines(numbers)))
    if out is not None:
        with written("--out", out):
            draw(workload.population, out, model=workload.model)
        typer.echo(f"The picture is in {out}", err=as_json)


def _lines(numbers: dict[str, Any]) -> list[str]:
    lines = [f"{numbers['clients']:,} clients"]
    lines += [
        f"{numbers[what]['total']:,} {what.replace('_', ' ')}; per client {_spread(numbers[what])}"
        for what in ("examples", "test_examples")
    ]
    if numbers["central_test_examples"]:
        lines.append(f"{numbers['central_test_examples']:,} examples in the central test set")
    for name, table in numbers["tables"].items():
        lines.append(f"table {name}: {table['rows']:,} rows are held; per client {_spread(table['held'])}")
        lines.append(f"  heat, clients per row: {_spread(table['heat'])}")
    return lines


def _spread(numbers: dict[str, Any]) -> str:
    names = ("min", "p10", "median", "p90", "max")
    return ", ".join(
        f"{name} {numbers[name]:,.{0 if numbers[name] >= 1000 else 1}f}".replace(".0", "") for name in names
    )
