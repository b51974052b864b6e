"""`partwise run` and `partwise resume`."""

from __future__ import annotations

import enum
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from partwise.cli.app import FAILED, INTERRUPTED, NOT_A_RUN, fail, sentence
from partwise.cli.watch import Watcher
from partwise.core.errors import PartwiseError

if TYPE_CHECKING:
    from partwise.cli.watch import View
    from partwise.experiment.experiment import Experiment

__all__ = ["execute", "resume", "run"]

Json = Annotated[bool, typer.Option("--json", help="One JSON object per line, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")]
Root = Annotated[Path, typer.Option("--root", help="Where the folders of runs are.")]


class On(str, enum.Enum):
    """Where a run may run."""

    simulate = "simulate"
    processes = "processes"


def run(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.toml", help="What to run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it: scheduler.rounds=20 client.0.max_norm=3"),
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Of the run; a new one under --root by default.")] = None,
    root: Root = Path("runs"),
    as_json: Json = False,
    quiet: Quiet = False,
    on: Annotated[On | None, typer.Option("--on", help="Another runtime than the specification's.")] = None,
) -> None:
    """Run a specification to its end, or to its target, or to Ctrl-C."""
    from partwise.cli.views import view_for

    view = view_for(as_json=as_json, quiet=quiet)
    view.prepare("reading the specification and the data")
    watcher = execute(_load(spec, list(overrides or ()), on), view, folder=folder, root=root)
    if not as_json and not quiet:
        _say_what_next(watcher)


def resume(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of a run that was killed or interrupted.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a run from its last checkpoint, to the bits it would have ended with."""
    from partwise.cli.views import view_for
    from partwise.experiment.spec import SPEC, load
    from partwise.experiment.store import RunStore

    with RunStore(folder, "read") as store:
        status = str(store.meta().get("status", ""))
    if status == "done" or status.startswith("target reached"):
        fail(f"{folder}: there must be something left to do, got a run that ended ({status}). Run it again.", NOT_A_RUN)
    if not (folder / SPEC).is_file():
        fail(
            f"{folder}: needs its {SPEC}, got none: the run was made in Python of parts that a specification cannot "
            f"name. Go on from there: experiment.run({str(folder)!r}, resume=True).",
            NOT_A_RUN,
        )
    view = view_for(as_json=as_json, quiet=quiet)
    view.prepare("reading the last checkpoint and the data")
    watcher = execute(load(folder / SPEC), view, folder=folder, resume=True)
    if not as_json and not quiet:
        _say_what_next(watcher)


def _load(spec: Path, overrides: list[str], on: On | None) -> Experiment:
    from partwise.experiment.spec import load

    try:
        experiment = load(spec, overrides)
        wanted = on.value.capitalize() if on else type(experiment.runtime).__name__
        return experiment if type(experiment.runtime).__name__ == wanted else load(spec, [*overrides, f"runtime={wanted}"])
    except OSError as error:
        raise ValueError(f"{spec}: must be a specification that can be read, got: {error.strerror}.") from error


def execute(
    experiment: Experiment, view: View, *, folder: Path | None = None, root: Path = Path("runs"), resume: bool = False
) -> Watcher:
    """Run, and end the program with the right exit code if the run did not end well."""
    watcher = Watcher(view, experiment.evaluation.scope)
    try:
        experiment.run(folder, resume=resume, progress=watcher, root=root)
    except KeyboardInterrupt:
        if not watcher.has_started:
            raise
        fail(f"interrupted at once. {_how_to_resume(watcher)}", INTERRUPTED)
    except (PartwiseError, ValueError, OSError) as error:
        if not watcher.has_started:
            raise
        raise _Failed(f"{sentence(error)} {_how_to_see(watcher)}") from error
    if watcher.reason == "interrupted":
        at = watcher.last.version if watcher.last else 0
        fail(f"interrupted, and saved at version {at}. {_how_to_resume(watcher)}", INTERRUPTED)
    if watcher.reason == "nothing left to do" or watcher.reason.startswith("client "):
        raise _Failed(f"the run ended early: {watcher.reason}. {_how_to_see(watcher)}")
    return watcher
