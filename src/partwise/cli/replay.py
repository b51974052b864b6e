"""`partwise replay`: a run made again from its log."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from partwise.cli.app import FAILED, UNUSABLE, EndedError, written
from partwise.cli.watch import Watcher

__all__ = ["replay_command"]


def replay_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    into: Annotated[Path | None, typer.Option("--into", help="Keep the run made again, in this new folder.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")] = False,
) -> None:
    """Make a run again from its log, and compare.

    Every record and the final model must come out the same, bit by bit: also those of a run of worker processes, whose
    clients raced one another. Otherwise the first difference is told, with exit code 1.
    """
    from partwise.cli.views import view_for
    from partwise.experiment.again import replay
    from partwise.experiment.log import read_log

    if into is not None:
        read_log(run)  # or a folder would be made where there is no run
        with written("--into", into):
            if into.is_dir() and any(into.iterdir()):
                said = f"--into {into}: must be new or empty, got a folder with files. Name another."
                raise EndedError(said, UNUSABLE)
            into.mkdir(parents=True, exist_ok=True)
    with closing(view_for(as_json=False, quiet=quiet)) as view:
        view.prepare("reading the specification, the log and the data")
        found = replay(run, into, progress=Watcher(view))
    if not found.is_equal:
        raise EndedError(f"{run} did not come out the same. {found.difference}", FAILED)
    if not quiet:
        typer.echo(
            f"The same, bit by bit: {' and '.join(found.compared)}, from {found.messages:,} messages and "
            f"{found.versions:,} versions."
        )
        if into is not None:
            typer.echo(f"The run made again is in {into}")
