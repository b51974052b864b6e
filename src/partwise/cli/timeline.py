"""`partwise timeline`: who did what when."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from partwise.cli.app import UNUSABLE, EndedError, written

if TYPE_CHECKING:
    from partwise.experiment.runs import Run

__all__ = ["timeline_command"]


def timeline_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file; timeline.svg by default.")] = None,
    text: Annotated[bool, typer.Option("--text", help="A picture in letters, on the terminal.")] = False,
    clients: Annotated[str, typer.Option(help="Whose rows, such as 3,7-9.")] = "",
    rows: Annotated[int, typer.Option(help="How many rows, without --clients; of those asked most often.")] = 24,
    begin: Annotated[float, typer.Option("--from", help="Seconds on the run's clock.")] = 0.0,
    end: Annotated[float | None, typer.Option("--to", help="Seconds on the run's clock.")] = None,
) -> None:
    """A row per client: what it did when, and what was lost.

    Versions are lines across the rows. It is an SVG file, or a picture in letters.
    """
    from partwise.experiment.runs import read_run
    from partwise.experiment.timeline import timeline_of
    from partwise.experiment.timeline_svg import timeline_svg
    from partwise.experiment.timeline_text import timeline_text

    try:
        read = read_run(run)
        found = timeline_of(read, clients=_numbers(clients, read), rows=rows, begin=begin, end=end)
    except LookupError as error:
        raise EndedError(str(error.args[0]), UNUSABLE) from error
    if text:
        typer.echo(timeline_text(found, shutil.get_terminal_size((100, 24)).columns))
    if out is not None or not text:
        path = out or Path("timeline.svg")
        with written("--out", path):
            path.write_text(timeline_svg(found), encoding="utf-8", errors="replace")  # names may be any bytes
        note = "" if text else found.note()
        typer.echo(f"The timeline is in {path}{'. ' if note else ''}{note}")


def _numbers(clients: str, run: Run) -> list[int]:
    """`3,7-9` as numbers of clients that there are."""
    about, found = run.population or {}, set[int]()
    there = about.get("numbers") or range(about.get("clients", 0)) or sorted({span.client for span in run.spans})
    for part in clients.replace(" ", "").split(",") if clients.strip() else []:
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not (last.isdecimal() and int(first) <= int(last))):
            said = f"--clients {clients}: must be numbers and stretches of numbers, got {part!r}. Write 3,7-9."
            raise EndedError(said, UNUSABLE)
        meant = [client for client in there if int(first) <= client <= int(last or first)]
        if there and not meant:
            said = f"--clients {clients}: must be clients of the run, got {part!r}. They are from {min(there)} to "
            raise EndedError(f"{said}{max(there)}.", UNUSABLE)
        found.update(meant)
    return sorted(found)
